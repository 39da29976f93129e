"""Study of which of two runs' counterfactuals is better (DiG-IN, App. E, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor

from classifier_lens.data.image_folder import ImageFolder
from classifier_lens.data.images import center_crop_resize
from classifier_lens.runner.configuration.compose import load_recorded_dataset
from classifier_lens.runner.configuration.value_ranges import Fraction
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.report.totals import SuccessRate
from classifier_lens.runner.result_schema import ORIGINAL, Record
from classifier_lens.runner.results.reader import RunResults
from classifier_lens.runner.results.run_folder import read_png
from classifier_lens.runner.types import UserError, indefinite_article
from classifier_lens.scripts.study.pages import (
    METHODS,
    YES_OR_NO,
    Box,
    Gallery,
    MakeOptions,
    Panel,
    Question,
    Study,
    check_task,
    matching_records,
    sample_items,
)
from classifier_lens.scripts.study.responses import (
    TRUE_OR_FALSE,
    AllowedResponses,
    ResponseCount,
    read_responses,
)

TITLE = "Which image is better?"
INTRODUCTION = (
    "Each box below starts with an original image. Two programs changed the object in it into another one, and should "
    "have left the rest unchanged. Judge their results. Four example images show the other object."
)
NUM_REFERENCES = 4  # example images of the target class per problem
# For each of the two images; `{target}` is the target class with its article.
QUESTIONS = {
    "realistic": "Could this image be a real photograph?",
    "features": "Does it show what is typical of {target}?",
    "object": "Was mainly the object changed, and little else?",
}
BETTER, EQUAL = "better", "equal"  # the question about both images, and the response that neither is better


@dataclass
class PreferenceOptions(MakeOptions):
    """references: a folder <class>/<image> with example images of the classes, None for the training images of the run;
    min_confidence: smallest confidence in the target, which both runs must have reached."""

    study: str = "preference"
    references: str | None = None
    min_confidence: Fraction = 0.8


@dataclass(frozen=True)
class Pair:
    """A problem with results of both runs, the side of its images in pixels and their neutral names: of the original,
    the references and the results by method."""

    source: str
    target: str
    side: int
    original: str
    references: Sequence[str]
    results: Mapping[str, str]


# --- pages ---------------------------------------------------------------------------------------------------


def build_study(runs: Sequence[RunResults], options: PreferenceOptions) -> Study:
    """A study of the results of both runs, with the original and example images of the target class."""
    random = Random(f"{options.seed} problems")
    problems = sample_items(comparable_results(runs, options.min_confidence), options.max_items, random)
    reference_dataset = reference_images(options.references, runs[0], options.seed)
    gallery = Gallery(random)
    pairs = [_pair(runs, record_pair, reference_dataset, gallery) for record_pair in problems]
    return Study(TITLE, INTRODUCTION, dict(zip(METHODS, runs, strict=True)), gallery, partial(make_boxes, pairs))


def comparable_results(runs: Sequence[RunResults], min_confidence: float) -> list[tuple[Record, ...]]:
    """The results of both runs for the problems in which both reach this confidence in the target, sorted by name.

    Raises UserError if a run is of another task, the original images differ, or no problem is left.
    """
    for run in runs:
        check_task(run, "uvce", "preference")
    matches = matching_records(runs, [run.records for run in runs], ["source", "target"], [ORIGINAL])
    confident = [
        record_pair
        for record_pair in matches
        if min(r["confidence_after"][r["target"]] for r in record_pair) >= min_confidence
    ]
    if not confident:
        raise UserError(
            f"min_confidence={min_confidence}: reached by {runs[0].folder} and {runs[1].folder} in no common problem; "
            "give a lower value"
        )
    return confident


def reference_images(references: str | None, run: RunResults, seed: int) -> Dataset:
    """The data set of the example images: a folder, or the training images in the run's configuration."""
    if references is not None:
        if not Path(references).is_dir():
            raise UserError(f"references={references}: no such folder; give a folder of <class>/<image>")
        return ImageFolder(references, seed)
    if "training" not in run.config:
        raise UserError(
            f"{run.folder}: has no training images for examples; give references=<folder of <class>/<image>>"
        )
    try:
        return load_recorded_dataset(run.config["training"], str(run.folder / "config.yaml"))
    except UserError as error:
        raise UserError(f"{error}; give references=<folder of <class>/<image>>") from error


def _pair(
    runs: Sequence[RunResults], record_pair: Sequence[Record], reference_dataset: Dataset, gallery: Gallery
) -> Pair:
    """A problem, with its images added to the gallery. Raises UserError if there are too few images of the target."""
    source, target = record_pair[0]["source"], record_pair[0]["target"]
    original = runs[0].image_path(record_pair[0], ORIGINAL)
    side = read_png(original).shape[-1]
    indices = reference_dataset.indices(target)
    if len(indices) < NUM_REFERENCES:
        raise UserError(f"references: {len(indices)} images of '{target}'; at least {NUM_REFERENCES} are needed")
    examples = gallery.random.sample(indices, NUM_REFERENCES)
    references = [gallery.add(partial(_example, reference_dataset, row, side)) for row in examples]
    original_name = gallery.add(partial(read_png, original))
    return Pair(source, target, side, original_name, references, gallery.add_results(runs, record_pair))


def _example(reference_dataset: Dataset, index: int, side: int) -> Tensor:
    return center_crop_resize(reference_dataset[index].image, side)


def make_boxes(pairs: Sequence[Pair], random: Random) -> list[Box]:
    """The boxes of a page: problems, and the two results of each, in random order."""
    return [_box(pair, random.sample(METHODS, len(METHODS))) for pair in random.sample(list(pairs), len(pairs))]


def _box(pair: Pair, order: Sequence[str]) -> Box:
    target = f"{indefinite_article(pair.target)} {pair.target}"
    images = {f"Image {i}": pair.results[method] for i, method in enumerate(order, start=1)}
    examples = [(name, f"Example {i} of the target: {pair.target}") for i, name in enumerate(pair.references, start=1)]
    context_panels = [
        Panel(f"Original: {pair.source}", [(pair.original, f"Original: {pair.source}")]),
        Panel(f"Target: {pair.target}", examples),
    ]
    rated_panels = [
        Panel(
            heading, [(name, heading)],
            [Question(key, text.format(target=target), YES_OR_NO, name) for key, text in QUESTIONS.items()],
        )
        for heading, name in images.items()
    ]  # fmt: skip
    choices = [*((name, heading.lower()) for heading, name in images.items()), (EQUAL, "both equally")]
    better = Question(BETTER, "Which of the two is better overall?", choices, None)
    return Box(f"from “{pair.source}” to “{pair.target}”", pair.side, [context_panels, rated_panels], [better])


# --- scores --------------------------------------------------------------------------------------------------


def score(files: Sequence[Path], key: Mapping[str, Any]) -> list[ResponseCount]:
    """Per question and method how often the response is yes, and how often each method, or neither, is preferred. The
    responses of all participants are pooled, as in Table 1."""
    method_of = {image: metadata["method"] for image, metadata in key["images"].items()}
    better = AllowedResponses(
        f"an image of the key, or {EQUAL}", lambda value: value in [*method_of, EQUAL], per_image=False
    )
    responses = read_responses(files, key, {**dict.fromkeys(QUESTIONS, TRUE_OR_FALSE), BETTER: better})
    verdicts: dict[tuple[str, str], list[bool]] = {
        (question, method): [] for question in QUESTIONS for method in METHODS
    }
    verdicts |= {(BETTER, method): [] for method in (*METHODS, EQUAL)}
    for response in (response for participant_responses in responses for response in participant_responses):
        if response.image is not None:
            verdicts[response.question, method_of[response.image]].append(response.value)
            continue
        for name in (*METHODS, EQUAL):
            verdicts[BETTER, name].append(method_of.get(response.value, EQUAL) == name)
    return [
        ResponseCount(question, method, SuccessRate(sum(values), len(values)))
        for (question, method), values in verdicts.items()
    ]
