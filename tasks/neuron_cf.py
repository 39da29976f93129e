"""Neuron counterfactuals (DiG-IN, App. F.2, Eq. 22): a picture with more and with less of what excites a unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as memoised
from functools import partial
from itertools import islice, product
from typing import Any

import torch
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
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, TaskInputs
from classifier_lens.runner.types import Example, Images, Objective, Problem, Reference
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.objectives.loss_terms import saturation_levels, unit_activation
from classifier_lens.tasks.problems.image_problems import (
    STAGES,
    change_success,
    image_indices,
    measure_confidences,
    probabilities,
    problem_seed,
    problems_of_images,
    slug,
    success_counts_by,
    unedited_image_fields,
)
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
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
from classifier_lens.tasks.units.hirescam import HiResCam

STD_TOLERANCE = 1e-6  # of its mean: a unit that spreads less is constant but for rounding in float32

DIRECTION_SIGNS = {"max": 1.0, "min": -1.0}


@dataclass(frozen=True, kw_only=True)
class NeuronCounterfactualProblem(Problem):
    """unit: what is raised or lowered, as `direction` says, one of `DIRECTION_SIGNS`; std: of its activation over the
    training pictures; label: index of the picture's class."""

    unit: Unit
    direction: str
    std: float
    label: int


class NeuronCf:
    """units: see `activation_ranking.choose_units`; label: the class of the pictures, None for all; min_change_std: the
    change that counts as a success, and saturation_std: beyond which it counts no more, in standard deviations over
    `training`; prompt_to_prompt: that replace the generator's; context_search: the search for words to start with;
    feature_attack: the feature attack that is shown beside; cam: tells where units look; weights: of the objective's
    terms; cache: keeps what was computed."""

    def __init__(
        self,
        training: Dataset,
        units: UnitAddresses,
        label: str | None,
        directions: Directions,
        preserve: Preserve,
        mask: str | None,
        min_change_std: NonNegative,
        saturation_std: Positive | None,
        feature_attack: FeatureAttack,
        cam: HiResCam,
        weights: UnitWeights,
        prompt_to_prompt: PromptToPromptSteps,
        context_search: ContextSearch,
        captioner: Captioner,
        cache: Cache,
        baseline: str,
    ) -> None:
        self.training, self.units, self.label, self.preserve, self.mask = training, units, label, preserve, mask
        self.directions = [check_choice("task.directions", d, DIRECTION_SIGNS) for d in directions]
        self.min_change_std, self.saturation_std, self.feature_attack, self.cam, self.weights = (
            min_change_std,
            saturation_std,
            feature_attack,
            cam,
            weights,
        )
        self.captioner, self.cache = captioner, cache
        self.prompt_to_prompt, self.context_search = prompt_to_prompt, context_search
        self.dependencies, self.baseline = (training,), baseline

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_training_images(classifier, self.training)
        parse_unit_selection(self.units, classifier)
        image_indices(dataset, self.label)
        self.cam.check(classifier)

    def problems(self, world: TaskInputs) -> tuple[list[NeuronCounterfactualProblem], int | None]:
        """One problem per picture, unit and direction."""
        side, classifier = world.generator.resolution, world.classifier
        ranking = memoised(lambda module: rank_units(classifier, module, self.training, side, self.cache))
        units = choose_units(self.units, classifier, lambda: ranking(FEATURES))
        self.cam.check(classifier)
        rows, changes = image_indices(world.dataset, self.label), list(product(units, self.directions))

        def pushed(name: str, unit: Unit, direction: str, given: dict[str, Any]) -> list[NeuronCounterfactualProblem]:
            score, std = partial(activation, classifier, unit=unit), _training_std(ranking(unit.module), unit)
            caption, label, sign = given["edit"].source, given["mask_words"], DIRECTION_SIGNS[direction]
            fields = given | self.context_search.search(caption, label, score, sign, world, self.cache)
            return [NeuronCounterfactualProblem(name=name, unit=unit, direction=direction, std=std, **fields)]

        def asked(i: int, example: Example) -> Iterator[NeuronCounterfactualProblem]:
            label = classifier.labels.index(resolve_class_name("data.label", example.label, classifier.labels))
            given = unedited_image_fields(world.dataset, i, example, self.captioner, side, self.preserve, self.mask)
            given |= {
                "label": label,
                "label_index": label,
                "seed": problem_seed(world.seed, i),
                "mask_words": example.label,
            }
            for unit, direction in changes:
                name = f"{example.name}-{slug(str(unit))}-{direction}"
                yield from problems_or_failure(name, partial(pushed, name, unit, direction, given))

        return list(islice(problems_of_images(world.dataset, rows, asked), world.limit)), len(rows) * len(changes)

    def objective(
        self, problems: Sequence[NeuronCounterfactualProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        """∓ φ_n(x) and the two distances."""
        signs = torch.tensor([DIRECTION_SIGNS[p.direction] for p in problems])
        shown = zip(reference.original, problems, strict=True)
        before = (activation(classifier, original[None], p.unit).item() for original, p in shown)
        enough = saturation_levels(self.saturation_std, before, signs, [p.std for p in problems])
        term = unit_activation(classifier, [p.unit for p in problems], signs, enough)
        return {"unit_activation": (self.weights["unit_activation"], term), **distances(reference, self.weights)}

    def illustrate(
        self, problem: NeuronCounterfactualProblem, pictures: Images, classifier: Classifier
    ) -> dict[str, Tensor]:
        """The feature attack, and where the unit looks before and after (brightest where it looks most)."""
        attacked = self.feature_attack(classifier, pictures["before"], problem.unit, DIRECTION_SIGNS[problem.direction])
        return {"attack": attacked, **self.cam.heatmaps(classifier, pictures, problem.unit)}

    def measure(self, problem: NeuronCounterfactualProblem, pictures: Images, classifier: Classifier) -> dict[str, Any]:
        """Activation and the class's confidence before, at the start, after and under attack; HiResCAM's share outside
        the object."""
        shown = torch.stack([pictures[name] for name in (*STAGES, "attack")])
        with torch.no_grad():
            values = pooled_outputs(classifier, shown, [problem.unit.module])[problem.unit.module][
                :, problem.unit.index
            ]
        before, start, after, attacked = values.tolist()
        label = classifier.labels[problem.label]
        return {
            **change_success(before, after, problem.std, DIRECTION_SIGNS[problem.direction], self.min_change_std),
            "source": label, "target": f"{problem.unit} {problem.direction}",
            "unit": str(problem.unit), "direction": problem.direction, "activation_before": before,
            "activation_start": start, "activation_after": after, "activation_attack": attacked,
            "training_std": problem.std,
            **measure_confidences(classifier, pictures, [problem.label]),
            "confidence_attack": probabilities(classifier, [pictures["attack"]])[0, problem.label].item(),
            **self.cam.shares_outside_object(classifier, pictures, problem.unit, problem.preserve),
        }  # fmt: skip

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Successes per direction."""
        return success_counts_by("direction", records)


def _training_std(ranking: Ranking, unit: Unit) -> float:
    """The standard deviation of a unit over the training pictures, 0 where it is the same in all of them."""
    std: float = ranking.std[unit.index].item()
    return std if std > STD_TOLERANCE * abs(ranking.mean[unit.index].item()) else 0.0
