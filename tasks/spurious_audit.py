"""Audit of spurious features (DiffExplainer, Section 3.3): of a class's most important features, which respond to the
object and which to something else, by the share r that the object takes of the images of a feature's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as memoized
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NotRequired, TypedDict

from annotated_types import MinLen
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.digests import HashedFiles, hash_example
from classifier_lens.data.image_selection import check_choice
from classifier_lens.data.salient_imagenet import FeatureAnnotations
from classifier_lens.runner.configuration.value_ranges import (
    Fraction,
    Names,
    NonNegative,
    OneOf,
    PerProblemCount,
    PromptWeights,
)
from classifier_lens.runner.protocols import Cache, Classifier, Dataset, HasDigest, TaskInputs, TextSegmenter
from classifier_lens.runner.result_schema import (
    RESULT,
    START,
    ImageField,
    Label,
    Record,
    ResultImages,
    ResultSchema,
)
from classifier_lens.runner.types import DISABLED_PROMPT_TO_PROMPT, CaptionEdit, Objective, Reference, UserError
from classifier_lens.tasks.analysis.activation_score import (
    gray_outside_mask,
    image_grid,
    measure_activation_score,
    stack_result_images,
)
from classifier_lens.tasks.analysis.audit_set import AnnotationFields, annotation_of, audited_classes, audited_features
from classifier_lens.tasks.analysis.label_agreement import (
    Agreement,
    AgreementRow,
    DeltaRow,
    agreement,
    calibrate_delta,
)
from classifier_lens.tasks.analysis.verdict import CORE, SPURIOUS, UNDECIDED, bootstrap_interval, verdict
from classifier_lens.tasks.problems.image_problems import image_loader
from classifier_lens.tasks.problems.problem_names import problem_seed, slug
from classifier_lens.tasks.problems.prompt_problems import (
    OBJECTIVES,
    PromptProblem,
    activation_sign,
    free_token_prompt,
    prompt_objective,
)
from classifier_lens.tasks.prompts.target_rules import resolve_class_names
from classifier_lens.tasks.units.activation_ranking import check_training_images, rank_units, top_image_index
from classifier_lens.tasks.units.addressing import FEATURES, Unit, activation
from classifier_lens.tasks.units.hirescam import heatmap, hirescam

TRAINING_IMAGE = ImageField("training_image", "Most activating training image")
CLASS_REGION = ImageField("class_region", "Region of the class, in color")
TRAINING_CAM = ImageField("hirescam_training", "HiResCAM of the training image", overlaid_on=(TRAINING_IMAGE.key,))


@dataclass(frozen=True, kw_only=True)
class FeatureAuditProblem(PromptProblem):
    """unit: the feature; rank: among the class's features, from 1; class_mean: its mean activation in the training
    images predicted as the class; training_max: its highest in any training image; delta: the threshold of the verdict;
    load_top_example: reads the most activating training image, of the class if there is one."""

    unit: Unit
    rank: int
    class_mean: float
    training_max: float
    delta: float


class FeatureAuditRecord(AnnotationFields):
    """r: mean share of the object; r_per_image: of each image; activated: whether the images activate the feature
    enough for a verdict; agrees_with_annotation: None without a verdict or an annotation."""

    agrees_with_annotation: Annotated[bool | None, Label("Agrees with the annotation")]
    target: Annotated[str, Label("Target")]
    unit: Annotated[str, Label("Unit")]
    rank: Annotated[int, Label("Rank among the class's features")]
    objective: Annotated[str, Label("Objective")]
    verdict: Annotated[str, Label("Verdict")]
    r: Annotated[float, Label("r, share of the image on the class")]
    r_interval: Annotated[list[float], Label("95\u00a0% interval of r")]
    delta: Annotated[float, Label("Threshold δ")]
    r_per_image: list[float]
    classifier_digest: Annotated[str, Label("Digest of the classifier")]
    activation: Annotated[float, Label("Activation")]
    activated: Annotated[bool, Label("Images activate the feature")]
    class_mean_activation: Annotated[float, Label("Mean activation in training images of the class")]
    training_max: Annotated[float, Label("Training maximum")]
    activation_score: Annotated[float, Label("Activation score")]


class FeatureAuditSummary(TypedDict):
    """Verdicts are counted for the first objective alone; features: a row per result."""

    results: Annotated[int, Label("Results")]
    delta: Annotated[float, Label("Threshold δ")]
    core: Annotated[int, Label("Core features")]
    spurious: Annotated[int, Label("Spurious features")]
    undecided: Annotated[int, Label("Undecided features")]
    not_activated: Annotated[int, Label("Features that no prompt activates")]
    agreement: NotRequired[list[AgreementRow]]
    delta_curve: NotRequired[list[DeltaRow]]
    features: Annotated[list[dict[str, Any]], Label("Features")]


RESULT_SCHEMA = ResultSchema(
    "Audit of spurious features",
    FeatureAuditRecord,
    summary=[FeatureAuditSummary, Agreement, AgreementRow, DeltaRow],
    images=[
        ImageField(RESULT.key, "Image of the optimized prompt"),
        ImageField(START.key, "Image of the initial prompt"),
        TRAINING_IMAGE,
        CLASS_REGION,
        TRAINING_CAM,
    ],
)
TABLE_COLUMNS = (
    *("target", "rank", "unit", "objective", "verdict", "annotation"),
    *("r", "r_interval", "activation", "class_mean_activation"),
)


@dataclass
class SpuriousAudit:
    """training: images on which features are ranked; classes: names, None for all, or `stratified:<n>` for n classes
    for each number of spurious features; features_per_class: features per class; annotations: human annotations of
    features, which are audited then, None for none; objectives: of `OBJECTIVES`, the first one decides; prompt:
    template with free tokens, see `prompt_tuning.py`; segmenter: finds the class by its name; delta: δ of Eq. 6;
    calibration_runs: run folders of annotated audits of other classifiers, from which δ is chosen instead;
    activation_threshold: share of a feature's mean activation in images of the class, below which the images of a
    prompt allow no verdict; weights: of the terms; cache: stores rankings; baseline: see `runner.baselines.methods`."""

    training: Dataset
    classes: Names | str | None
    features_per_class: PerProblemCount
    annotations: FeatureAnnotations | None
    objectives: Annotated[Sequence[Annotated[str, OneOf(tuple(OBJECTIVES))]], MinLen(1)]
    prompt: str
    segmenter: TextSegmenter
    delta: Fraction
    calibration_runs: Sequence[str]
    activation_threshold: NonNegative
    weights: PromptWeights
    cache: Cache
    baseline: str

    captioner = None
    prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT

    def __post_init__(self) -> None:
        self.annotations = self.annotations or None
        if not self.objectives:
            raise UserError(f"task.objectives=[]: name at least one of {', '.join(OBJECTIVES)}")
        for objective in self.objectives:
            check_choice("task.objectives", objective, OBJECTIVES)

    @property
    def dependencies(self) -> Sequence[HasDigest]:
        annotations = [] if self.annotations is None else [self.annotations]
        results = [Path(run) / "results.jsonl" for run in self.calibration_runs]
        return (self.segmenter, self.training, *annotations, *([HashedFiles(results)] if results else []))

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_training_images(classifier, self.training)
        if not isinstance(self.classes, str):
            resolve_class_names("task.classes", self.classes, classifier.labels)

    def problems(self, inputs: TaskInputs) -> tuple[list[FeatureAuditProblem], int | None]:
        """One problem per class, feature and objective."""
        classifier, side = inputs.classifier, inputs.generator.resolution
        delta = calibrate_delta(self.calibration_runs, classifier.digest) if self.calibration_runs else self.delta
        ranking = rank_units(classifier, FEATURES, self.training, side, self.cache)
        combinations = [
            (label, rank, unit, objective)
            for label in audited_classes(self.classes, self.annotations, classifier, ranking, inputs.seed)
            for rank, unit in audited_features(label, self.features_per_class, self.annotations, classifier, ranking)
            for objective in self.objectives
        ]
        top_row = memoized(lambda unit, label: top_image_index(ranking, unit, label, classifier, self.training, side))
        problems = []
        for label, rank, unit, objective in islice(combinations, inputs.limit):
            name, row = classifier.labels[label], top_row(unit, label)
            problems.append(
                FeatureAuditProblem(
                    name=f"{slug(name, classifier.labels)}-{rank}-{slug(str(unit))}-{objective}",
                    seed=problem_seed(inputs.seed, unit.index, label),
                    load=None,
                    edit=CaptionEdit.unchanged(free_token_prompt(self.prompt, name), name),
                    image_name=slug(f"{name} {unit}"),
                    preserve="none",
                    init_seed=problem_seed(inputs.seed, 0),
                    objective=objective,
                    target=label,
                    unit=unit,
                    rank=rank,
                    class_mean=ranking.class_means[label, unit.index].item(),
                    training_max=ranking.top_values[0, unit.index].item(),
                    delta=delta,
                    load_top_example=image_loader(self.training, row, hash_example(self.training[row]), side),
                )
            )
        return problems, len(combinations)

    def objective(
        self, problems: Sequence[FeatureAuditProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        return prompt_objective(problems, classifier, self.weights)

    def _segment(
        self, problem: FeatureAuditProblem, images: ResultImages
    ) -> tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n 1 h w"]]:
        """The images of the prompt, and the masks of the class in them."""
        stack = stack_result_images(images)
        return stack, self.segmenter.segment(stack, [problem.edit.source_words] * len(stack)).to(stack)

    def illustrate(
        self, problem: FeatureAuditProblem, images: ResultImages, classifier: Classifier
    ) -> dict[ImageField, Float[Tensor, "c h w"]]:
        """The segmented class, and a training image with HiResCAM of the feature."""
        assert problem.load_top_example is not None
        training = problem.load_top_example()
        illustrations = {
            CLASS_REGION: image_grid(gray_outside_mask(*self._segment(problem, images))),
            TRAINING_IMAGE: training,
        }
        cam = hirescam(classifier, training.to(images.result), problem.unit)
        return illustrations if cam is None else illustrations | {TRAINING_CAM: heatmap(cam)}

    def measure(self, problem: FeatureAuditProblem, images: ResultImages, classifier: Classifier) -> FeatureAuditRecord:
        """r of every image, its mean with an interval, and the verdict. The verdict is undecided if the images activate
        the feature less than images of the class do. No verdict is a success."""
        stack, masks = self._segment(problem, images)
        mean_activation = activation(classifier, stack, problem.unit).mean().item()
        # Activations and weights can be negative.
        gain = activation_sign(classifier, problem.target, problem.unit) * (mean_activation - problem.class_mean)
        activated = gain >= (self.activation_threshold - 1) * abs(problem.class_mean)
        r_per_image = masks.flatten(1).mean(dim=1).tolist()
        r, (low, high) = fmean(r_per_image), bootstrap_interval(r_per_image)
        decision = verdict(low, high, problem.delta) if activated else UNDECIDED
        annotation = annotation_of(self.annotations, problem.target, problem.unit)
        undecided = annotation["annotation"] is None or decision == UNDECIDED
        return {
            "agrees_with_annotation": None if undecided else annotation["annotation"] == decision,
            "target": classifier.labels[problem.target], "unit": str(problem.unit), "rank": problem.rank,
            "objective": problem.objective, "verdict": decision, "r": r, "r_interval": [low, high],
            "delta": problem.delta, "r_per_image": r_per_image, **annotation, "classifier_digest": classifier.digest,
            "activation": mean_activation, "activated": activated, "class_mean_activation": problem.class_mean,
            "training_max": problem.training_max,
            "activation_score": measure_activation_score(classifier, list(stack), problem.target).value,
        }  # fmt: skip

    def summarize(self, records: Sequence[Record]) -> FeatureAuditSummary:
        """The table of all features, the verdicts of the first objective, and their agreement with annotations."""
        deciding = [record for record in records if record["objective"] == self.objectives[0]]
        verdicts = [record["verdict"] for record in deciding]
        delta = records[0]["delta"] if records else self.delta
        return {
            "results": len(records),
            "delta": delta,
            "core": verdicts.count(CORE),
            "spurious": verdicts.count(SPURIOUS),
            "undecided": verdicts.count(UNDECIDED),
            "not_activated": sum(not record["activated"] for record in deciding),
            **agreement(deciding, delta),
            "features": [{column: record[column] for column in TABLE_COLUMNS} for record in records],
        }
