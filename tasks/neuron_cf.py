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
    Keep,
    NonNegative,
    Positive,
    Schedule,
    Units,
    UnitWeights,
)
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, World
from classifier_lens.runner.types import Anchor, Example, Objective, Pictures, Problem
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.objectives.loss_terms import ends, unit_activation
from classifier_lens.tasks.problems.image_problems import (
    STAGES,
    asked_of,
    confidences,
    moved_by,
    own_seed,
    probabilities,
    rows_of,
    slug,
    success_by,
    unchanged,
)
from classifier_lens.tasks.problems.problem_checks import attempted
from classifier_lens.tasks.prompts.context_search import Surroundings
from classifier_lens.tasks.prompts.target_rules import known_label
from classifier_lens.tasks.units.activation_ranking import check_asked, check_training, choose_units, rank
from classifier_lens.tasks.units.addressing import FEATURES, Ranking, Unit, activation, outputs
from classifier_lens.tasks.units.feature_attack import FeatureAttack
from classifier_lens.tasks.units.hirescam import HiResCam

CONSTANT = 1e-6  # of its mean: a unit that spreads less is constant but for rounding in float32

SIGNS = {"max": 1.0, "min": -1.0}


@dataclass(frozen=True, kw_only=True)
class Push(Problem):
    """unit: what is raised or lowered, as `direction` says, one of `SIGNS`; std: of its activation over the training
    pictures; label: index of the picture's class."""

    unit: Unit
    direction: str
    std: float
    label: int


class NeuronCf:
    """units: see `ranking.choose_units`; label: the class of the pictures, None for all; moved: the change that counts
    as a success, and enough: beyond which it counts no more, in standard deviations over `training`; schedules: that
    replace the generator's; surroundings: the search for words to start with; attack: the feature attack that is shown
    beside; cam: tells where units look; weights: of the objective's terms; cache: keeps what was computed."""

    def __init__(
        self, training: Dataset, units: Units, label: str | None, directions: Directions,
        keep: Keep, mask: str | None, moved: NonNegative, enough: Positive | None, attack: FeatureAttack, cam: HiResCam,
        weights: UnitWeights, schedules: Schedule, surroundings: Surroundings,
        captioner: Captioner, cache: Cache, baseline: str,
    ) -> None:  # fmt: skip
        self.training, self.units, self.label, self.keep, self.mask = training, units, label, keep, mask
        self.directions = [check_choice("task.directions", d, SIGNS) for d in directions]
        self.moved, self.enough, self.attack, self.cam, self.weights = moved, enough, attack, cam, weights
        self.captioner, self.cache = captioner, cache
        self.schedules, self.surroundings = schedules, surroundings
        self.networks, self.baseline = (training,), baseline

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_training(classifier, self.training)
        check_asked(self.units, classifier)
        rows_of(dataset, self.label)
        self.cam.check(classifier)

    def problems(self, world: World) -> tuple[list[Push], int | None]:
        """One problem per picture, unit and direction."""
        side, classifier = world.generator.resolution, world.classifier
        ranking = memoised(lambda module: rank(classifier, module, self.training, side, self.cache))
        units = choose_units(self.units, classifier, lambda: ranking(FEATURES))
        self.cam.check(classifier)
        rows, changes = rows_of(world.dataset, self.label), list(product(units, self.directions))

        def pushed(name: str, unit: Unit, direction: str, given: dict[str, Any]) -> list[Push]:
            score, std = partial(activation, classifier, unit=unit), _spread(ranking(unit.module), unit)
            caption, label, sign = given["edit"].source, given["words"], SIGNS[direction]
            fields = given | self.surroundings.start(caption, label, score, sign, world, self.cache)
            return [Push(name=name, unit=unit, direction=direction, std=std, **fields)]

        def asked(i: int, example: Example) -> Iterator[Push]:
            label = classifier.labels.index(known_label("data.label", example.label, classifier.labels))
            given = unchanged(world.dataset, i, example, self.captioner, side, self.keep, self.mask)
            given |= {"label": label, "shows": label, "seed": own_seed(world.seed, i), "words": example.label}
            for unit, direction in changes:
                name = f"{example.name}-{slug(str(unit))}-{direction}"
                yield from attempted(name, partial(pushed, name, unit, direction, given))

        return list(islice(asked_of(world.dataset, rows, asked), world.limit)), len(rows) * len(changes)

    def objective(self, problems: Sequence[Push], anchor: Anchor, classifier: Classifier) -> Objective:
        """∓ φ_n(x) and the two distances."""
        signs = torch.tensor([SIGNS[p.direction] for p in problems])
        shown = zip(anchor.original, problems, strict=True)
        before = (activation(classifier, original[None], p.unit).item() for original, p in shown)
        enough = ends(self.enough, before, signs, [p.std for p in problems])
        term = unit_activation(classifier, [p.unit for p in problems], signs, enough)
        return {"unit_activation": (self.weights["unit_activation"], term), **distances(anchor, self.weights)}

    def illustrate(self, problem: Push, pictures: Pictures, classifier: Classifier) -> dict[str, Tensor]:
        """The feature attack, and where the unit looks before and after (brightest where it looks most)."""
        attacked = self.attack(classifier, pictures["before"], problem.unit, SIGNS[problem.direction])
        return {"attack": attacked, **self.cam.shown(classifier, pictures, problem.unit)}

    def measure(self, problem: Push, pictures: Pictures, classifier: Classifier) -> dict[str, Any]:
        """Activation and the class's confidence before, at the start, after and under attack; HiResCAM's share outside
        the object."""
        shown = torch.stack([pictures[name] for name in (*STAGES, "attack")])
        with torch.no_grad():
            values = outputs(classifier, shown, [problem.unit.module])[problem.unit.module][:, problem.unit.index]
        before, start, after, attacked = values.tolist()
        label = classifier.labels[problem.label]
        return {
            **moved_by(before, after, problem.std, SIGNS[problem.direction], self.moved),
            "source": label, "target": f"{problem.unit} {problem.direction}",
            "unit": str(problem.unit), "direction": problem.direction, "activation_before": before,
            "activation_start": start, "activation_after": after, "activation_attack": attacked,
            "training_std": problem.std,
            **confidences(classifier, pictures, [problem.label]),
            "confidence_attack": probabilities(classifier, [pictures["attack"]])[0, problem.label].item(),
            **self.cam.shares(classifier, pictures, problem.unit, problem.keep),
        }  # fmt: skip

    def summarise(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Successes per direction."""
        return success_by("direction", records)


def _spread(ranking: Ranking, unit: Unit) -> float:
    """The standard deviation of a unit over the training pictures, 0 where it is the same in all of them."""
    std: float = ranking.std[unit.index].item()
    return std if std > CONSTANT * abs(ranking.mean[unit.index].item()) else 0.0
