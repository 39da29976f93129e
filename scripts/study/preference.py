"""Which of two runs' counterfactuals is the better (DiG-IN, App. E, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor

from classifier_lens.data.image_folder import ImageFolder, center_crop_resize
from classifier_lens.runner.configuration.compose import load_recorded_dataset
from classifier_lens.runner.configuration.value_ranges import Fraction
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.report.totals import SuccessRate
from classifier_lens.runner.results.reader import Record, RunResults
from classifier_lens.runner.results.run_folder import read_png
from classifier_lens.runner.types import UserError, indefinite_article
from classifier_lens.scripts.study.pages import (
    METHODS,
    TRUE_OR_FALSE,
    YES_OR_NO,
    AllowedAnswers,
    AnswerCount,
    Box,
    Gallery,
    MakeOptions,
    Panel,
    Question,
    Study,
    check_task,
    matching_records,
    read_answers,
    sample_items,
)

TITLE = "Which picture is better?"
INTRODUCTION = (
    "Each box below begins with an original picture. Two programs were asked to change what it shows into something "
    "else, and to leave the rest as it was. Judge what they made of it; four pictures show what the wanted thing looks "
    "like."
)
NUM_REFERENCES = 4  # pictures of the target class beside each question
# Asked of each of the two pictures; `{target}` is the wanted class with its article.
QUESTIONS = {
    "realistic": "Could this picture be real?",
    "features": "Does it show what is typical of {target}?",
    "object": "Was mainly the object changed, and little else?",
}
BETTER, EQUAL = "better", "equal"  # the question about both, and the answer that neither is


@dataclass
class PreferenceOptions(MakeOptions):
    """references: a folder <class>/<picture> of pictures that show the classes, None for the run's own training
    pictures; min_confidence: confidence in the target that both runs must have reached."""

    study: str = "preference"
    references: str | None = None
    min_confidence: Fraction = 0.8


@dataclass(frozen=True)
class Pair:
    """A problem that both runs answered, its pictures' side in pixels and their neutral names: of the original,
    the references and the answers by method."""

    source: str
    target: str
    side: int
    original: str
    references: Sequence[str]
    results: Mapping[str, str]


# --- making --------------------------------------------------------------------------------------------------


def ask(runs: Sequence[RunResults], chosen: PreferenceOptions) -> Study:
    """Both runs' answers, beside the original and pictures of the wanted class."""
    random = Random(f"{chosen.seed} problems")
    asked = sample_items(comparable_results(runs, chosen.min_confidence), chosen.max_items, random)
    shown = reference_images(chosen.references, runs[0], chosen.seed)
    gallery = Gallery(random)
    pairs = [_pair(runs, both, shown, gallery) for both in asked]
    return Study(TITLE, INTRODUCTION, dict(zip(METHODS, runs, strict=True)), gallery, partial(boxes, pairs))


def comparable_results(runs: Sequence[RunResults], least: float) -> list[tuple[Record, ...]]:
    """Both runs' answers to the problems that both answered with at least this confidence in the target, by name.

    Raises UserError if a run is of another task, the runs began with other pictures, or none is left.
    """
    for run in runs:
        check_task(run, "uvce", "preference")
    both = matching_records(runs, [run.records for run in runs], ["source", "target"], ["original"])
    found = [same for same in both if min(r["confidence_after"][r["target"]] for r in same) >= least]
    if not found:
        raise UserError(
            f"min_confidence={least}: no problem that both runs answered so; {runs[0].folder}, {runs[1].folder}"
        )
    return found


def reference_images(references: str | None, run: RunResults, seed: int) -> Dataset:
    """Where the pictures come from that show the classes: a folder, or what the run calls its training pictures."""
    if references is not None:
        if not Path(references).is_dir():
            raise UserError(f"references={references}: no such folder; wanted is a folder of <class>/<picture>")
        return ImageFolder(references, seed)
    if "training" not in run.config:
        raise UserError(f"{run.folder}: names no training pictures; give references=<folder of <class>/<picture>>")
    try:
        return load_recorded_dataset(run.config["training"], str(run.folder / "config.yaml"))
    except UserError as error:
        raise UserError(f"{error}; give references=<folder of <class>/<picture>>") from error


def _pair(runs: Sequence[RunResults], both: Sequence[Record], shown: Dataset, gallery: Gallery) -> Pair:
    """A problem, its pictures added to the gallery. Raises UserError if too few pictures show the target."""
    source, target = both[0]["source"], both[0]["target"]
    original = runs[0].image_path(both[0], "original")
    side = read_png(original).shape[-1]
    rows = shown.indices(target)
    if len(rows) < NUM_REFERENCES:
        raise UserError(f"references: {len(rows)} pictures of '{target}'; at least {NUM_REFERENCES} are needed")
    examples = gallery.random.sample(rows, NUM_REFERENCES)
    references = [gallery.add(partial(_example, shown, row, side)) for row in examples]
    named = gallery.add(partial(read_png, original))
    return Pair(source, target, side, named, references, gallery.add_results(runs, both))


def _example(shown: Dataset, row: int, side: int) -> Tensor:
    return center_crop_resize(shown[row].image, side)


def boxes(pairs: Sequence[Pair], random: Random) -> list[Box]:
    """A page's problems, and the two pictures of each, in the order that `random` draws."""
    return [_box(pair, random.sample(METHODS, len(METHODS))) for pair in random.sample(list(pairs), len(pairs))]


def _box(pair: Pair, sides: Sequence[str]) -> Box:
    target = f"{indefinite_article(pair.target)} {pair.target}"
    pictures = {f"Picture {i}": pair.results[method] for i, method in enumerate(sides, start=1)}
    wanted = [(name, f"Example {i} of: {pair.target}") for i, name in enumerate(pair.references, start=1)]
    given = [
        Panel(f"Original: {pair.source}", [(pair.original, f"Original: {pair.source}")]),
        Panel(f"What was wanted: {pair.target}", wanted),
    ]
    judged = [
        Panel(
            heading, [(name, heading)],
            [Question(key, text.format(target=target), YES_OR_NO, name) for key, text in QUESTIONS.items()],
        )
        for heading, name in pictures.items()
    ]  # fmt: skip
    choices = [*((name, heading.lower()) for heading, name in pictures.items()), (EQUAL, "both equally")]
    better = Question(BETTER, "Which of the two is better, all in all?", choices, None)
    return Box(f"from “{pair.source}” to “{pair.target}”", pair.side, [given, judged], [better])


# --- scoring -------------------------------------------------------------------------------------------------


def score(files: Sequence[Path], key: Mapping[str, Any]) -> list[AnswerCount]:
    """Per question and method how often it was answered with yes, and how often each method, or neither, was called the
    better; the answers of all participants are pooled, as in Table 1."""
    method = {picture: known["method"] for picture, known in key["pictures"].items()}
    better = AllowedAnswers(
        f"a picture of the key, or {EQUAL}", lambda value: value in [*method, EQUAL], per_image=False
    )
    answers = read_answers(files, key, {**dict.fromkeys(QUESTIONS, TRUE_OR_FALSE), BETTER: better})
    verdicts: dict[tuple[str, str], list[bool]] = {(question, who): [] for question in QUESTIONS for who in METHODS}
    verdicts |= {(BETTER, who): [] for who in (*METHODS, EQUAL)}
    for answer in (answer for own in answers for answer in own):
        if answer.image is not None:
            verdicts[answer.question, method[answer.image]].append(answer.value)
            continue
        for who in (*METHODS, EQUAL):
            verdicts[BETTER, who].append(method.get(answer.value, EQUAL) == who)
    return [
        AnswerCount(question, who, SuccessRate(sum(given), len(given))) for (question, who), given in verdicts.items()
    ]
