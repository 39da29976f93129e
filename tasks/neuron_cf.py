"""Unit counterfactuals (DiG-IN, App. F.2, Eq. 22): an image changed to activate a unit more, and less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as memoized
from functools import partial
from itertools import islice, product
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import (
    Directions,
    NonNegative,
    Positive,
    Preserve,
    PromptToPromptSteps,
    UnitAddresses,
    UnitWeights,
)
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, HasDigest, TaskInputs
from classifier_lens.runner.result_schema import (
    RESULT,
    ImageField,
    Label,
    Record,
    ResultImages,
    ResultSchema,
    StageFields,
    SuccessFields,
    SummaryFields,
)
from classifier_lens.runner.types import Example, Objective, Problem, Reference
from classifier_lens.tasks.analysis.predictions import measure_confidences, probabilities
from classifier_lens.tasks.analysis.success import DIRECTION_SIGNS, change_success, success_counts_by
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.objectives.loss_terms import saturation_levels, unit_activation
from classifier_lens.tasks.problems.image_problems import image_indices, problems_of_images, unedited_image_fields
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
from classifier_lens.tasks.problems.problem_names import problem_seed, slug
from classifier_lens.tasks.prompts.context_search import ContextSearch
from classifier_lens.tasks.prompts.target_rules import resolve_class_name
from classifier_lens.tasks.units.activation_ranking import (
    check_training_images,
    choose_units,
    parse_unit_selection,
    rank_units,
)
from classifier_lens.tasks.units.addressing import FEATURES, Ranking, Unit, activation, pooled_outputs
from classifier_lens.tasks.units.feature_attack import FeatureAttack
from classifier_lens.tasks.units.hirescam import CAM_AFTER, CAM_BEFORE, CamShares, HiResCam

STD_TOLERANCE = 1e-6  # of the mean: less standard deviation is rounding in float32, and the unit is constant

ATTACKED = ImageField("feature_attack", "Feature attack")


@dataclass(frozen=True, kw_only=True)
class UnitCounterfactualProblem(Problem):
    """unit: the unit that is raised or lowered, by `direction`, one of `DIRECTION_SIGNS`; std: of its activation over
    the training images; label: index of the image's class."""

    unit: Unit
    direction: str
    std: float
    label: int


class UnitCounterfactualRecord(SuccessFields, StageFields, CamShares):
    """source: the image's class, whose confidence is measured; …_attack: in the image of the feature attack."""

    source: Annotated[str, Label("Source class")]
    target: Annotated[str, Label("Target")]
    unit: Annotated[str, Label("Unit")]
    direction: Annotated[str, Label("Direction")]
    activation_before: Annotated[float, Label("Activation before")]
    activation_start: Annotated[float, Label("Activation at the start")]
    activation_after: Annotated[float, Label("Activation after")]
    activation_attack: Annotated[float, Label("Activation after the feature attack")]
    training_std: Annotated[float, Label("Standard deviation over training images")]
    confidence_attack: Annotated[float, Label("Confidence after the feature attack")]


RESULT_SCHEMA = ResultSchema(
    "Unit counterfactuals",
    UnitCounterfactualRecord,
    images=[ImageField(RESULT.key, "Counterfactual"), ATTACKED, CAM_BEFORE, CAM_AFTER],
)


@dataclass
class NeuronCf:
    """training: images on which units are ranked; units: see `activation_ranking.choose_units`; label: class of the
    images, None for all; directions: of `DIRECTION_SIGNS`; preserve, mask: see `Problem`; min_change_std: change of a
    success, and saturation_std: change at which the activation is clamped (None for no limit), in standard deviations
    over `training`; feature_attack: computed for comparison; cam: locates units; weights: of the terms;
    prompt_to_prompt: replaces the generator's; context_search: of the start's caption; cache: stores rankings and the
    images of the context search; baseline: see `runner.baselines.methods`."""

    training: Dataset
    units: UnitAddresses
    label: str | None
    directions: Directions
    preserve: Preserve
    mask: str | None
    min_change_std: NonNegative
    saturation_std: Positive | None
    feature_attack: FeatureAttack
    cam: HiResCam
    weights: UnitWeights
    prompt_to_prompt: PromptToPromptSteps
    context_search: ContextSearch
    captioner: Captioner
    cache: Cache
    baseline: str

    def __post_init__(self) -> None:
        for direction in self.directions:
            check_choice("task.directions", direction, DIRECTION_SIGNS)

    @property
    def dependencies(self) -> Sequence[HasDigest]:
        return (self.training,)

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_training_images(classifier, self.training)
        parse_unit_selection(self.units, classifier)
        image_indices(dataset, self.label)
        self.cam.check(classifier)

    def problems(self, inputs: TaskInputs) -> tuple[list[UnitCounterfactualProblem], int | None]:
        """One problem per image, unit and direction."""
        side, classifier = inputs.generator.resolution, inputs.classifier
        ranking = memoized(lambda module: rank_units(classifier, module, self.training, side, self.cache))
        units = choose_units(self.units, classifier, lambda: ranking(FEATURES))
        self.cam.check(classifier)
        rows, changes = image_indices(inputs.dataset, self.label), list(product(units, self.directions))

        def make_problem(
            name: str, unit: Unit, direction: str, fields: Mapping[str, Any]
        ) -> list[UnitCounterfactualProblem]:
            score, std = partial(activation, classifier, unit=unit), _training_std(ranking(unit.module), unit)
            caption, label, sign = fields["edit"].source, fields["mask_words"], DIRECTION_SIGNS[direction]
            start = self.context_search.search(caption, label, score, sign, inputs, self.cache)
            fields = {**fields, "edit": start.edit, "editable_from_noise": start.editable_from_noise}
            return [UnitCounterfactualProblem(name=name, unit=unit, direction=direction, std=std, **fields)]

        def image_problems(i: int, example: Example) -> Iterator[UnitCounterfactualProblem]:
            label = classifier.labels.index(resolve_class_name("data.label", example.label, classifier.labels))
            fields = unedited_image_fields(inputs.dataset, i, example, self.captioner, side, self.preserve, self.mask)
            fields |= {
                "label": label,
                "label_index": label,
                "seed": problem_seed(inputs.seed, i),
                "mask_words": example.label,
            }
            for unit, direction in changes:
                name = f"{example.name}-{slug(str(unit))}-{direction}"
                yield from problems_or_failure(name, partial(make_problem, name, unit, direction, fields))

        problems = problems_of_images(inputs.dataset, rows, image_problems)
        return list(islice(problems, inputs.limit)), len(rows) * len(changes)

    def objective(
        self, problems: Sequence[UnitCounterfactualProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        """∓ φ_n(x) and the two distances."""
        signs = torch.tensor([DIRECTION_SIGNS[p.direction] for p in problems])
        before = (
            activation(classifier, original[None], p.unit).item()
            for original, p in zip(reference.original, problems, strict=True)
        )
        saturation = saturation_levels(self.saturation_std, before, signs, [p.std for p in problems])
        term = unit_activation(classifier, [p.unit for p in problems], signs, saturation)
        return {"unit_activation": (self.weights["unit_activation"], term), **distances(reference, self.weights)}

    def illustrate(
        self, problem: UnitCounterfactualProblem, images: ResultImages, classifier: Classifier
    ) -> dict[ImageField, Float[Tensor, "c h w"]]:
        """The feature attack of the original, and HiResCAM before and after."""
        attacked = self.feature_attack(classifier, images.before, problem.unit, DIRECTION_SIGNS[problem.direction])
        return {ATTACKED: attacked, **self.cam.heatmaps(classifier, images, problem.unit)}

    def measure(
        self, problem: UnitCounterfactualProblem, images: ResultImages, classifier: Classifier
    ) -> UnitCounterfactualRecord:
        """Activation and confidence in the image's class, and HiResCAM's share outside the object. A result is a
        success if the activation changes by `min_change_std` standard deviations in its direction."""
        unit, attacked = problem.unit, images.task_images[ATTACKED]
        with torch.no_grad():
            outputs = pooled_outputs(classifier, torch.stack([*images.stages, attacked]), [unit.module])
        before, start, after, attack = outputs[unit.module][:, unit.index].tolist()
        return {
            **change_success(before, after, problem.std, DIRECTION_SIGNS[problem.direction], self.min_change_std),
            "source": classifier.labels[problem.label], "target": f"{unit} {problem.direction}",
            "unit": str(unit), "direction": problem.direction,
            "activation_before": before, "activation_start": start, "activation_after": after,
            "activation_attack": attack, "training_std": problem.std,
            **measure_confidences(classifier, images, [problem.label]),
            "confidence_attack": probabilities(classifier, [attacked])[0, problem.label].item(),
            **self.cam.shares_outside_object(classifier, images, unit, problem.preserve),
        }  # fmt: skip

    def summarize(self, records: Sequence[Record]) -> dict[str, SummaryFields]:
        """Successes per direction."""
        return success_counts_by("direction", records)


def _training_std(ranking: Ranking, unit: Unit) -> float:
    """The standard deviation of a unit over the training images, 0 for a constant unit."""
    std: float = ranking.std[unit.index].item()
    return std if std > STD_TOLERANCE * abs(ranking.mean[unit.index].item()) else 0.0
