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

from classifier_lens.data.digests import hash_example
from classifier_lens.runner.configuration.value_ranges import PerProblemCount, Positive, UnitAddresses
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, TaskInputs
from classifier_lens.runner.types import DISABLED_PROMPT_TO_PROMPT, CaptionEdit, Images, Objective, Problem, Reference
from classifier_lens.tasks.objectives.loss_terms import unit_activation
from classifier_lens.tasks.problems.image_problems import (
    comparison_text,
    image_loader,
    problem_seed,
    slug,
    success_counts,
)
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
from classifier_lens.tasks.units.activation_ranking import (
    check_top_images,
    check_training_images,
    choose_units,
    parse_unit_selection,
    rank_units,
)
from classifier_lens.tasks.units.addressing import FEATURES, Ranking, Unit, activation, pooled_outputs
from classifier_lens.tasks.units.word_activations import WordActivations, format_phrase_prompt, measure_word_activations


@dataclass(frozen=True, kw_only=True)
class NeuronVisualizationProblem(Problem):
    """unit: what is to be excited; other_units: the run's other units; ranking: of its module; word_activations: what
    it answers to words alone, None where no generator draws any; load_top_example: reads the training image that
    excites it most."""

    unit: Unit
    other_units: tuple[Unit, ...]
    ranking: Ranking
    word_activations: WordActivations | None
    load_top_example: Callable[[], Tensor]


class NeuronVis:
    """training: the pictures that units are ranked on; units: see `activation_ranking.choose_units`; top_images: so
    many best pictures name the objects; max_objects: so many of them are tried, `images_per_object` pictures each, as
    `prompt` says it; num_seeds: pictures per unit; saturation_ratio: times the best training picture's activation,
    beyond which it counts no more, None for no end; cache: keeps rankings and the words' pictures; baseline: see
    `runner.baselines.methods`."""

    def __init__(
        self,
        training: Dataset,
        units: UnitAddresses,
        top_images: PerProblemCount,
        max_objects: PerProblemCount,
        images_per_object: PerProblemCount,
        prompt: str,
        num_seeds: PerProblemCount,
        saturation_ratio: Positive | None,
        captioner: Captioner,
        cache: Cache,
        baseline: str,
    ) -> None:
        self.training, self.units, self.top_images, self.max_objects, self.images_per_object = (
            training,
            units,
            check_top_images(top_images),
            max_objects,
            images_per_object,
        )
        self.prompt, self.num_seeds, self.saturation_ratio, self.baseline = (
            prompt,
            num_seeds,
            saturation_ratio,
            baseline,
        )
        self.captioner, self.cache = captioner, cache
        self.prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT
        self.dependencies = (training,)

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_training_images(classifier, self.training)
        parse_unit_selection(self.units, classifier)

    def problems(self, world: TaskInputs) -> tuple[list[NeuronVisualizationProblem], int | None]:
        """So many problems per unit; those of a unit start from its best word and differ in their seed."""
        side, classifier = world.generator.resolution, world.classifier
        ranking = memoised(lambda module: rank_units(classifier, module, self.training, side, self.cache))
        units = choose_units(self.units, classifier, lambda: ranking(FEATURES))
        asked = list(islice(product(units, range(self.num_seeds)), world.limit))
        fields = memoised(lambda unit: self._unit_fields(unit, units, ranking(unit.module), world))

        def excited(name: str, i: int, unit: Unit) -> list[NeuronVisualizationProblem]:
            return [
                NeuronVisualizationProblem(
                    name=name,
                    seed=problem_seed(world.seed, i),
                    load=None,
                    preserve="none",
                    unit=unit,
                    image_name=slug(str(unit)),
                    **fields(unit),
                )
            ]

        found = [
            problem for i, (unit, k) in enumerate(asked) for name in [f"{slug(str(unit))}-{k}"]
            for problem in problems_or_failure(name, partial(excited, name, i, unit))
        ]  # fmt: skip
        return found, len(units) * self.num_seeds

    def _unit_fields(self, unit: Unit, units: Sequence[Unit], ranked: Ranking, world: TaskInputs) -> dict[str, Any]:
        """What a unit's problems share."""
        rows = ranked.top_indices[: self.top_images, unit.index].tolist()
        words = self._word_activations(unit, rows, world)
        said = ("", "") if words is None else (format_phrase_prompt(self.prompt, words.best_word), words.best_word)
        content = hash_example(self.training[rows[0]])
        return {
            "edit": CaptionEdit.unchanged(*said),
            "other_units": tuple(u for u in units if u != unit), "ranking": ranked, "word_activations": words,
            "load_top_example": image_loader(self.training, rows[0], content, world.generator.resolution),
        }  # fmt: skip

    def _word_activations(self, unit: Unit, rows: Sequence[int], world: TaskInputs) -> WordActivations | None:
        """What the unit answers to the objects of its best training images; None where nothing draws them."""
        if not world.generator.can_generate:
            return None
        named = dict.fromkeys(word for row in rows for word in self.captioner.objects(self.training[row]))
        return measure_word_activations(
            unit, list(named)[: self.max_objects], self.prompt, self.images_per_object, world, self.cache
        )

    def objective(
        self, problems: Sequence[NeuronVisualizationProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        best = torch.stack([p.ranking.top_values[0, p.unit.index] for p in problems])
        enough = None if self.saturation_ratio is None else self.saturation_ratio * best
        term = unit_activation(classifier, [p.unit for p in problems], torch.ones(len(problems)), enough)
        return {"unit_activation": (1.0, term)}

    def illustrate(
        self, problem: NeuronVisualizationProblem, pictures: Images, classifier: Classifier
    ) -> dict[str, Tensor]:
        worded = {} if problem.word_activations is None else {"worded": problem.word_activations.best_image()}
        return {"training": problem.load_top_example(), **worded}

    def measure(self, problem: NeuronVisualizationProblem, pictures: Images, classifier: Classifier) -> dict[str, Any]:
        """The unit's activation before, after, in the best training picture and of the words; that of the run's units
        of its module; its own and the others' mean in standard deviations over the training pictures."""
        own = activation(classifier, torch.stack([pictures["before"], pictures["best"]]), problem.unit)
        ranking, unit = problem.ranking, problem.unit
        highest = ranking.top_values[0, unit.index].item()
        others = [u for u in problem.other_units if u.module == unit.module]
        values = pooled_outputs(classifier, pictures["best"][None], [unit.module])[unit.module][0].cpu()
        standard = (values - ranking.mean) / ranking.std.clamp(min=1e-12)
        return {
            "success": own[1].item() > highest,
            "criterion": comparison_text(own[1].item(), highest, "the highest activation in training images"),
            "target": str(unit), "unit": str(unit), **_word_record(problem.word_activations),
            "activation_before": own[0].item(), "activation_after": own[1].item(), "training_max": highest,
            "own_standardised": standard[unit.index].item(),
            "others_standardised": fmean([standard[u.index].item() for u in others]) if others else None,
            "activations": {str(u): values[u.index].item() for u in (unit, *others)},
        }  # fmt: skip

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Per unit the mean activation of its pictures, beside the best training picture's and the word's."""
        by_unit: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            by_unit.setdefault(record["unit"], []).append(record)
        return success_counts(records) | {
            unit: {
                "activation": fmean(r["activation_after"] for r in own), "training_max": own[0]["training_max"],
                **{key: own[0][key] for key in ("word_max", "word") if key in own[0]},
            }
            for unit, own in by_unit.items()
        }  # fmt: skip


def _word_record(words: WordActivations | None) -> dict[str, Any]:
    """Plain values about words that were tried."""
    return (
        {} if words is None else {"word": words.best_word, "word_max": words.max_activation, "word_means": words.means}
    )
