"""Which of a class's most important features look at the object, and which at something else (DiffExplainer, Section
3.3): the share of the pictures of a feature's prompt that a segmenter gives to the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache as memoised
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from annotated_types import MinLen
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
from classifier_lens.runner.protocols import Cache, Classifier, Dataset, TaskInputs, TextSegmenter
from classifier_lens.runner.types import (
    DISABLED_PROMPT_TO_PROMPT,
    CaptionEdit,
    Images,
    Objective,
    Reference,
    UserError,
)
from classifier_lens.tasks.analysis.activation_score import (
    gray_outside_mask,
    image_grid,
    measure_activation_score,
    stack_result_images,
)
from classifier_lens.tasks.analysis.audit_set import annotation_of, audited_classes, audited_features
from classifier_lens.tasks.analysis.label_agreement import (
    CORE,
    SPURIOUS,
    UNDECIDED,
    agreement,
    bootstrap_interval,
    calibrate_delta,
    verdict,
)
from classifier_lens.tasks.problems.image_problems import image_loader, problem_seed, slug
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
from classifier_lens.tasks.units.hirescam import hirescam

COLUMNS = ("target", "rank", "unit", "objective", "verdict", "label", "r", "r_interval", "activation", "typical")


@dataclass(frozen=True, kw_only=True)
class FeatureAuditProblem(PromptProblem):
    """unit: the feature; rank: among the class's, from 1; class_mean: its mean activation in the training pictures
    predicted as the class, training_max: the largest in any; load_top_example: such a picture, of the class where there
    is one."""

    unit: Unit
    rank: int
    class_mean: float
    training_max: float


class SpuriousAudit:
    """training: images on which features are ranked; classes: names, None for all, or `stratified:<n>` for n classes of
    each number of features annotated as spurious; features_per_class: of each class; annotations: what people say
    of features, which are then those that are audited, None for nothing; objectives: of `OBJECTIVES`, the first one
    decides; prompt: with free tokens, see `prompt_tuning.py`; segmenter: finds the class by its name; delta: δ of Eq.
    6; calibration_runs: run folders of labelled audits of other classifiers, by which δ is chosen instead;
    activation_threshold: the share of a feature's typical activation below which its prompt's pictures show nothing of
    it; weights: of the terms."""

    def __init__(
        self,
        training: Dataset,
        classes: Names | str | None,
        features_per_class: PerProblemCount,
        annotations: FeatureAnnotations | None,
        objectives: Annotated[Sequence[Annotated[str, OneOf(tuple(OBJECTIVES))]], MinLen(1)],
        prompt: str,
        segmenter: TextSegmenter,
        delta: Fraction,
        calibration_runs: Sequence[str],
        activation_threshold: NonNegative,
        weights: PromptWeights,
        cache: Cache,
        baseline: str,
    ) -> None:
        if not objectives:
            raise UserError(f"task.objectives=[]: name at least one of {', '.join(OBJECTIVES)}")
        self.objectives = [check_choice("task.objectives", name, OBJECTIVES) for name in objectives]
        self.features_per_class, self.annotations = features_per_class, annotations or None
        self.training, self.classes, self.prompt, self.segmenter = training, classes, prompt, segmenter
        self.delta, self.calibration_runs, self.activation_threshold, self.weights = (
            delta,
            calibration_runs,
            activation_threshold,
            weights,
        )
        self.cache, self.baseline = cache, baseline
        self.prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT
        known = [HashedFiles(Path(run) / "results.jsonl" for run in calibration_runs)] if calibration_runs else []
        self.dependencies = (segmenter, training, *([] if self.annotations is None else [self.annotations]), *known)
        self.captioner = None

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_training_images(classifier, self.training)
        if not isinstance(self.classes, str):
            resolve_class_names("task.classes", self.classes, classifier.labels)

    def problems(self, world: TaskInputs) -> tuple[list[FeatureAuditProblem], int | None]:
        """One problem per class, feature and objective."""
        classifier, side = world.classifier, world.generator.resolution
        if self.calibration_runs:
            self.delta = calibrate_delta(self.calibration_runs, classifier.digest)
        ranking = rank_units(classifier, FEATURES, self.training, side, self.cache)
        asked = [
            (label, k, unit, objective)
            for label in audited_classes(self.classes, self.annotations, classifier, ranking, world.seed)
            for k, unit in audited_features(label, self.features_per_class, self.annotations, classifier, ranking)
            for objective in self.objectives
        ]
        best = memoised(lambda unit, label: top_image_index(ranking, unit, label, classifier, self.training, side))
        found = []
        for label, k, unit, objective in islice(asked, world.limit):
            name, row = classifier.labels[label], best(unit, label)
            found.append(
                FeatureAuditProblem(
                    name=f"{slug(name, classifier.labels)}-{k}-{slug(str(unit))}-{objective}",
                    seed=problem_seed(world.seed, unit.index, label),
                    load=None,
                    edit=CaptionEdit.unchanged(free_token_prompt(self.prompt, name), name),
                    image_name=slug(f"{name} {unit}"),
                    preserve="none",
                    init_seed=problem_seed(world.seed, 0),
                    objective=objective,
                    target=label,
                    unit=unit,
                    rank=k,
                    class_mean=ranking.class_means[label, unit.index].item(),
                    training_max=ranking.top_values[0, unit.index].item(),
                    load_top_example=image_loader(self.training, row, hash_example(self.training[row]), side),
                )
            )
        return found, len(asked)

    def objective(
        self, problems: Sequence[FeatureAuditProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        return prompt_objective(problems, classifier, self.weights)

    def _segmented(self, problem: FeatureAuditProblem, pictures: Images) -> tuple[Tensor, Tensor]:
        """The answer's pictures and where the segmenter finds the class in them."""
        images = stack_result_images(pictures)
        return images, self.segmenter.segment(images, [problem.edit.source_words] * len(images)).to(images)

    def illustrate(self, problem: FeatureAuditProblem, pictures: Images, classifier: Classifier) -> dict[str, Tensor]:
        """Where the class was found, and a training picture with where the feature looks in it."""
        assert problem.load_top_example is not None
        training = problem.load_top_example()
        shown = {"found": image_grid(gray_outside_mask(*self._segmented(problem, pictures))), "training": training}
        cam = hirescam(classifier, training.to(pictures["best"]), problem.unit)
        return shown if cam is None else shown | {"cam-training": (cam / cam.max().clamp(min=1e-12))[None]}

    def measure(self, problem: FeatureAuditProblem, pictures: Images, classifier: Classifier) -> dict[str, Any]:
        """r of every image, its mean with an interval, and the verdict: undecided where the images do less to the
        feature than the class's own often do, since they say nothing of it then. Neither verdict is a success; where
        there are human annotations, `agrees` says whether a verdict is theirs."""
        images, masks = self._segmented(problem, pictures)
        strength = activation(classifier, images, problem.unit).mean().item()
        # Features and weights can be negative.
        gain = activation_sign(classifier, problem.target, problem.unit) * (strength - problem.class_mean)
        reached = gain >= (self.activation_threshold - 1) * abs(problem.class_mean)
        shares = masks.flatten(1).mean(dim=1).tolist()
        r, (low, high) = fmean(shares), bootstrap_interval(shares)
        said = verdict(low, high, self.delta) if reached else UNDECIDED
        known = annotation_of(self.annotations, problem.target, problem.unit)
        return {
            "agrees": None if known["label"] is None or said == UNDECIDED else known["label"] == said,
            "target": classifier.labels[problem.target], "unit": str(problem.unit), "rank": problem.rank,
            "objective": problem.objective, "verdict": said, "r": r, "r_interval": [low, high], "delta": self.delta,
            "shares": shares, **known, "network": classifier.digest, "activation": strength, "reached": reached,
            "typical": problem.class_mean, "training_max": problem.training_max,
            "activation_score": measure_activation_score(classifier, list(images), problem.target).value,
        }  # fmt: skip

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The table of all features, the first objective's counts of verdicts and of prompts that did not reach their
        feature, and how far verdicts agree with people."""
        deciding = [record for record in records if record["objective"] == self.objectives[0]]
        counts = {kind: sum(record["verdict"] == kind for record in deciding) for kind in (CORE, SPURIOUS, UNDECIDED)}
        table = [{column: record[column] for column in COLUMNS} for record in records]
        return {
            "answers": len(records),
            "delta": self.delta,
            **counts,
            "not_reached": sum(not record["reached"] for record in deciding),
            **agreement(deciding, self.delta),
            "features": table,
        }
