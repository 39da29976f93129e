"""Unit visualizations (DiG-IN, Section 6, App. F.1, Eq. 6): generated images that activate a unit most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as memoized
from functools import partial
from itertools import islice, product
from statistics import fmean
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.digests import hash_example
from classifier_lens.runner.configuration.value_ranges import PerProblemCount, Positive, UnitAddresses
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, HasDigest, TaskInputs
from classifier_lens.runner.result_schema import (
    ImageField,
    Label,
    Record,
    ResultImages,
    ResultSchema,
    SuccessFields,
)
from classifier_lens.runner.types import DISABLED_PROMPT_TO_PROMPT, CaptionEdit, Objective, Problem, Reference
from classifier_lens.tasks.analysis.success import comparison_text, success_counts
from classifier_lens.tasks.objectives.loss_terms import unit_activation
from classifier_lens.tasks.problems.image_problems import image_loader
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
from classifier_lens.tasks.problems.problem_names import problem_seed, slug
from classifier_lens.tasks.units.activation_ranking import (
    check_top_images,
    check_training_images,
    choose_units,
    parse_unit_selection,
    rank_units,
)
from classifier_lens.tasks.units.addressing import FEATURES, Ranking, Unit, activation, pooled_outputs
from classifier_lens.tasks.units.word_activations import WordActivations, format_phrase_prompt, measure_word_activations

TRAINING_IMAGE = ImageField("training_image", "Most activating training image")
BEST_WORD_IMAGE = ImageField("best_word_image", "Most activating image of the words")


@dataclass(frozen=True, kw_only=True)
class UnitVisualizationProblem(Problem):
    """unit: the unit to activate; other_units: the run's other units; ranking: of its module; word_activations: of the
    tried words, None without a generator; load_top_example: reads the most activating training image."""

    unit: Unit
    other_units: tuple[Unit, ...]
    ranking: Ranking
    word_activations: WordActivations | None
    load_top_example: Callable[[], Float[Tensor, "3 h w"]]


class WordFields(TypedDict, total=False):
    """Activations of the tried words' images; absent without a generator."""

    best_word: Annotated[str, Label("Most activating words")]
    word_max: Annotated[float, Label("Highest activation of their images")]
    word_means: Annotated[dict[str, float], Label("Mean activation by words")]


class UnitVisualizationRecord(SuccessFields, WordFields):
    """activation_zscore: of the unit in the result, in standard deviations over the training images;
    other_units_zscore: mean of the run's other units of the same module, None if there are none; activations: of all
    these units."""

    target: str
    unit: Annotated[str, Label("Unit")]
    activation_before: Annotated[float, Label("Activation before")]
    activation_after: Annotated[float, Label("Activation after")]
    training_max: Annotated[float, Label("Training maximum")]
    activation_zscore: Annotated[float, Label("Activation, z-score over training images")]
    other_units_zscore: Annotated[float | None, Label("Mean z-score of the other units")]
    activations: Annotated[dict[str, float], Label("Activations of units")]


class UnitSummary(TypedDict):
    """A unit in the summary: the mean activation of its results."""

    activation: Annotated[float, Label("Activation")]
    training_max: Annotated[float, Label("Training maximum")]
    word_max: NotRequired[Annotated[float, Label("Highest activation of their images")]]
    best_word: NotRequired[Annotated[str, Label("Most activating words")]]


RESULT_SCHEMA = ResultSchema(
    "Unit visualization", UnitVisualizationRecord, summary=[UnitSummary], images=[TRAINING_IMAGE, BEST_WORD_IMAGE]
)


@dataclass
class NeuronVis:
    """training: images on which units are ranked; units: see `activation_ranking.choose_units`; top_images: most
    activating training images, whose objects the captioner names; max_objects: objects that are tried, on
    `images_per_object` images each, with the template `prompt`; num_seeds: images per unit; saturation_ratio: multiple
    of the highest training activation at which the activation is clamped, None for no limit; cache: stores rankings and
    the words' images; baseline: see `runner.baselines.methods`."""

    training: Dataset
    units: UnitAddresses
    top_images: PerProblemCount
    max_objects: PerProblemCount
    images_per_object: PerProblemCount
    prompt: str
    num_seeds: PerProblemCount
    saturation_ratio: Positive | None
    captioner: Captioner
    cache: Cache
    baseline: str

    prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT

    def __post_init__(self) -> None:
        check_top_images(self.top_images)

    @property
    def dependencies(self) -> Sequence[HasDigest]:
        return (self.training,)

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_training_images(classifier, self.training)
        parse_unit_selection(self.units, classifier)

    def problems(self, inputs: TaskInputs) -> tuple[list[UnitVisualizationProblem], int | None]:
        """`num_seeds` problems per unit, which start from its most activating word and differ in their seed."""
        side, classifier = inputs.generator.resolution, inputs.classifier
        ranking = memoized(lambda module: rank_units(classifier, module, self.training, side, self.cache))
        units = choose_units(self.units, classifier, lambda: ranking(FEATURES))
        fields = memoized(lambda unit: self._unit_fields(unit, units, ranking(unit.module), inputs))

        def make_problem(name: str, i: int, unit: Unit) -> list[UnitVisualizationProblem]:
            return [
                UnitVisualizationProblem(
                    name=name,
                    seed=problem_seed(inputs.seed, i),
                    load=None,
                    preserve="none",
                    unit=unit,
                    image_name=slug(str(unit)),
                    **fields(unit),
                )
            ]

        combinations = list(islice(product(units, range(self.num_seeds)), inputs.limit))
        problems = [
            problem for i, (unit, k) in enumerate(combinations) for name in [f"{slug(str(unit))}-{k}"]
            for problem in problems_or_failure(name, partial(make_problem, name, i, unit))
        ]  # fmt: skip
        return problems, len(units) * self.num_seeds

    def _unit_fields(self, unit: Unit, units: Sequence[Unit], ranking: Ranking, inputs: TaskInputs) -> dict[str, Any]:
        """The fields that a unit's problems share."""
        rows = ranking.top_indices[: self.top_images, unit.index].tolist()
        words = self._word_activations(unit, rows, inputs)
        prompt, phrase = (
            ("", "") if words is None else (format_phrase_prompt(self.prompt, words.best_word), words.best_word)
        )
        digest = hash_example(self.training[rows[0]])
        return {
            "edit": CaptionEdit.unchanged(prompt, phrase),
            "other_units": tuple(u for u in units if u != unit), "ranking": ranking, "word_activations": words,
            "load_top_example": image_loader(self.training, rows[0], digest, inputs.generator.resolution),
        }  # fmt: skip

    def _word_activations(self, unit: Unit, rows: Sequence[int], inputs: TaskInputs) -> WordActivations | None:
        """The unit's activations in images of the objects of its best training images; None without a generator."""
        if not inputs.generator.can_generate:
            return None
        objects = dict.fromkeys(name for row in rows for name in self.captioner.objects(self.training[row]))
        return measure_word_activations(
            unit, list(objects)[: self.max_objects], self.prompt, self.images_per_object, inputs, self.cache
        )

    def objective(
        self, problems: Sequence[UnitVisualizationProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        training_max = torch.stack([p.ranking.top_values[0, p.unit.index] for p in problems])
        saturation = None if self.saturation_ratio is None else self.saturation_ratio * training_max
        term = unit_activation(classifier, [p.unit for p in problems], torch.ones(len(problems)), saturation)
        return {"unit_activation": (1.0, term)}

    def illustrate(
        self, problem: UnitVisualizationProblem, images: ResultImages, classifier: Classifier
    ) -> dict[ImageField, Float[Tensor, "c h w"]]:
        """The most activating training image, and that of the words."""
        words = problem.word_activations
        word_image = {} if words is None else {BEST_WORD_IMAGE: words.best_image()}
        return {TRAINING_IMAGE: problem.load_top_example(), **word_image}

    def measure(
        self, problem: UnitVisualizationProblem, images: ResultImages, classifier: Classifier
    ) -> UnitVisualizationRecord:
        """Activations of the unit, compared with training images, words and the run's other units of its module. A
        result is a success if it activates the unit more than every training image."""
        ranking, unit = problem.ranking, problem.unit
        before, after = activation(classifier, torch.stack([images.before, images.result]), unit).tolist()
        training_max = ranking.top_values[0, unit.index].item()
        others = [u for u in problem.other_units if u.module == unit.module]
        values = pooled_outputs(classifier, images.result[None], [unit.module])[unit.module][0].cpu()
        zscores = (values - ranking.mean) / ranking.std.clamp(min=1e-12)
        return {
            "success": after > training_max,
            "criterion": comparison_text(after, training_max, "the highest activation in training images"),
            "target": str(unit), "unit": str(unit), **_word_fields(problem.word_activations),
            "activation_before": before, "activation_after": after, "training_max": training_max,
            "activation_zscore": zscores[unit.index].item(),
            "other_units_zscore": fmean([zscores[u.index].item() for u in others]) if others else None,
            "activations": {str(u): values[u.index].item() for u in (unit, *others)},
        }  # fmt: skip

    def summarize(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Successes; per unit the mean activation of its results, the training maximum and the best word."""
        by_unit: dict[str, list[Record]] = {}
        for record in records:
            by_unit.setdefault(record["unit"], []).append(record)
        return {**success_counts(records), **{unit: _unit_summary(group) for unit, group in by_unit.items()}}


def _word_fields(words: WordActivations | None) -> WordFields:
    if words is None:
        return {}
    return {"best_word": words.best_word, "word_max": words.max_activation, "word_means": words.means}


def _unit_summary(records: Sequence[Record]) -> UnitSummary:
    first = records[0]
    summary: UnitSummary = {
        "activation": fmean(r["activation_after"] for r in records), "training_max": first["training_max"]
    }  # fmt: skip
    if "best_word" in first:
        summary |= {"word_max": first["word_max"], "best_word": first["best_word"]}
    return summary
