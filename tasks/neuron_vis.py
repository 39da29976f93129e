"""Neuron visualisations (DiG-IN, Section 6, App. F.1, Eq. 6): pictures that excite a unit most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as memoised
from functools import partial
from itertools import islice, product
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from classifier_lens.data.image_selection import content_of
from classifier_lens.runner.configuration.value_ranges import Positive, Repeats, Units
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, World
from classifier_lens.runner.types import Anchor, Edit, Objective, Pictures, Problem
from classifier_lens.tasks.objectives.loss_terms import unit_activation
from classifier_lens.tasks.problems.image_problems import compared, own_seed, reading, slug, success_rate
from classifier_lens.tasks.problems.problem_checks import attempted
from classifier_lens.tasks.units.activation_ranking import check_asked, check_training, choose_units, kept, rank
from classifier_lens.tasks.units.addressing import FEATURES, Ranking, Unit, activation, outputs
from classifier_lens.tasks.units.word_activations import Words, phrased, words_of


@dataclass(frozen=True, kw_only=True)
class Excitation(Problem):
    """unit: what is to be excited; others: the run's other units; ranking: of its module; worded: what it answers to
    words alone, None where no generator draws any; example: reads the training image that excites it most."""

    unit: Unit
    others: tuple[Unit, ...]
    ranking: Ranking
    worded: Words | None
    example: Callable[[], Tensor]


class NeuronVis:
    """training: the pictures that units are ranked on; units: see `ranking.choose_units`; top: so many best pictures
    name the objects; words: so many of them are tried, `samples` pictures each, as `prompt` says it; seeds: pictures
    per unit; enough: times the best training picture's activation, beyond which it counts no more, None for no end;
    cache: keeps rankings and the words' pictures; baseline: see `runner.baselines.methods`."""

    def __init__(
        self, training: Dataset, units: Units, top: Repeats, words: Repeats, samples: Repeats, prompt: str,
        seeds: Repeats, enough: Positive | None, captioner: Captioner, cache: Cache, baseline: str,
    ) -> None:  # fmt: skip
        self.training, self.units, self.top, self.words, self.samples = training, units, kept(top), words, samples
        self.prompt, self.seeds, self.enough, self.baseline = prompt, seeds, enough, baseline
        self.captioner, self.cache = captioner, cache
        self.schedules = {"inject": [0.0], "blend": [0.0]}
        self.networks = (training,)

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_training(classifier, self.training)
        check_asked(self.units, classifier)

    def problems(self, world: World) -> tuple[list[Excitation], int | None]:
        """So many problems per unit; those of a unit start from its best word and differ in their seed."""
        side, classifier = world.generator.resolution, world.classifier
        ranking = memoised(lambda module: rank(classifier, module, self.training, side, self.cache))
        units = choose_units(self.units, classifier, lambda: ranking(FEATURES))
        asked = list(islice(product(units, range(self.seeds)), world.limit))
        fields = memoised(lambda unit: self._of_unit(unit, units, ranking(unit.module), world))

        def excited(name: str, i: int, unit: Unit) -> list[Excitation]:
            return [Excitation(
                name=name, seed=own_seed(world.seed, i), load=None, keep="none", unit=unit, picture=slug(str(unit)),
                **fields(unit),
            )]  # fmt: skip

        found = [
            problem for i, (unit, k) in enumerate(asked) for name in [f"{slug(str(unit))}-{k}"]
            for problem in attempted(name, partial(excited, name, i, unit))
        ]  # fmt: skip
        return found, len(units) * self.seeds

    def _of_unit(self, unit: Unit, units: Sequence[Unit], ranked: Ranking, world: World) -> dict[str, Any]:
        """What a unit's problems share."""
        rows = ranked.rows[: self.top, unit.index].tolist()
        words = self._words(unit, rows, world)
        said = ("", "") if words is None else (phrased(self.prompt, words.best), words.best)
        content = content_of(self.training[rows[0]])
        return {
            "edit": Edit.unchanged(*said),
            "others": tuple(u for u in units if u != unit), "ranking": ranked, "worded": words,
            "example": reading(self.training, rows[0], content, world.generator.resolution),
        }  # fmt: skip

    def _words(self, unit: Unit, rows: Sequence[int], world: World) -> Words | None:
        """What the unit answers to the objects of its best training images; None where nothing draws them."""
        if not world.generator.can_draw:
            return None
        named = dict.fromkeys(word for row in rows for word in self.captioner.objects(self.training[row]))
        return words_of(unit, list(named)[: self.words], self.prompt, self.samples, world, self.cache)

    def objective(self, problems: Sequence[Excitation], anchor: Anchor, classifier: Classifier) -> Objective:
        best = torch.stack([p.ranking.top[0, p.unit.index] for p in problems])
        enough = None if self.enough is None else self.enough * best
        term = unit_activation(classifier, [p.unit for p in problems], torch.ones(len(problems)), enough)
        return {"unit_activation": (1.0, term)}

    def illustrate(self, problem: Excitation, pictures: Pictures, classifier: Classifier) -> dict[str, Tensor]:
        worded = {} if problem.worded is None else {"worded": problem.worded.picture()}
        return {"training": problem.example(), **worded}

    def measure(self, problem: Excitation, pictures: Pictures, classifier: Classifier) -> dict[str, Any]:
        """The unit's activation before, after, in the best training picture and of the words; that of the run's units
        of its module; its own and the others' mean in standard deviations over the training pictures."""
        own = activation(classifier, torch.stack([pictures["before"], pictures["best"]]), problem.unit)
        ranking, unit = problem.ranking, problem.unit
        highest = ranking.top[0, unit.index].item()
        others = [u for u in problem.others if u.module == unit.module]
        values = outputs(classifier, pictures["best"][None], [unit.module])[unit.module][0].cpu()
        standard = (values - ranking.mean) / ranking.std.clamp(min=1e-12)
        return {
            "success": own[1].item() > highest,
            "criterion": compared(own[1].item(), highest, "the highest activation in training images"),
            "target": str(unit), "unit": str(unit), **_told(problem.worded),
            "activation_before": own[0].item(), "activation_after": own[1].item(), "training_max": highest,
            "own_standardised": standard[unit.index].item(),
            "others_standardised": fmean([standard[u.index].item() for u in others]) if others else None,
            "activations": {str(u): values[u.index].item() for u in (unit, *others)},
        }  # fmt: skip

    def summarise(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Per unit the mean activation of its pictures, beside the best training picture's and the word's."""
        by_unit: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            by_unit.setdefault(record["unit"], []).append(record)
        return success_rate(records) | {
            unit: {
                "activation": fmean(r["activation_after"] for r in own), "training_max": own[0]["training_max"],
                **{key: own[0][key] for key in ("word_max", "word") if key in own[0]},
            }
            for unit, own in by_unit.items()
        }  # fmt: skip


def _told(words: Words | None) -> dict[str, Any]:
    """Plain values about words that were tried."""
    return {} if words is None else {"word": words.best, "word_max": words.highest, "word_means": words.means}
