"""What the pictures of a class and of its features contain (DiffExplainer, Section 4.3, Fig. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from classifier_lens.runner.configuration.value_ranges import PerProblemCount
from classifier_lens.runner.report.totals import SuccessRate
from classifier_lens.runner.results.reader import Record, RunResults, group_by
from classifier_lens.runner.results.run_folder import read_png
from classifier_lens.runner.types import UserError, indefinite_article
from classifier_lens.scripts.study.pages import (
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
    primary_records,
    read_answers,
    sample_items,
)
from classifier_lens.tasks.analysis.activation_score import best_restarts

TITLE = "What do you see?"
INTRODUCTION = (
    "Each box below is about a class of things that a computer tells apart in pictures. A program made pictures of "
    "what the computer takes for the class as a whole, and of the single features that count most for it. Judge what "
    "the pictures show."
)
TASKS = ("diffexplainer_class", "spurious_audit")  # of the two runs, in the order in which they are given
MAX_FEATURES = 5  # of a class, those that contribute most
CORE, CONTENTS, NONE = "core", "contents", "none"
CHOICES = (
    ("object", "the whole object"), ("parts", "parts of the object"), ("shape", "its shape"),
    ("texture", "its texture"), ("context", "what surrounds it"), (NONE, "none of these"),
)  # fmt: skip
BIAS_GROUPS = ("biased", "medium", "unbiased")  # classes by how many of their features labels call spurious
ALL = "all"


@dataclass
class ContentOptions(MakeOptions):
    """images_per_prompt: of the class and of each feature at most."""

    study: str = "content"
    images_per_prompt: PerProblemCount = 4


@dataclass(frozen=True)
class ClassImages:
    """A class, its pictures' side in pixels and their neutral names: its own, the first of which answers name, and its
    features'."""

    class_name: str
    side: int
    class_images: Sequence[str]
    feature_images: Sequence[Sequence[str]]


# --- making --------------------------------------------------------------------------------------------------


def build_study(runs: Sequence[RunResults], chosen: ContentOptions) -> Study:
    """The classes of which one run made pictures and the other pictures of features, both of the same classifier."""
    random = Random(f"{chosen.seed} problems")
    gallery = Gallery(random)
    asked = sample_items(_explained(runs), chosen.max_items, random)
    subjects = [_subject(runs, portrait, own, chosen.images_per_prompt, gallery) for portrait, own in asked]
    return Study(TITLE, INTRODUCTION, dict(zip(TASKS, runs, strict=True)), gallery, partial(make_boxes, subjects))


def _explained(runs: Sequence[RunResults]) -> list[tuple[Record, list[Record]]]:
    """Per class the record of its best restart and those of its first features, by rank."""
    for run, task in zip(runs, TASKS, strict=True):
        check_task(run, task, "content")
    names = [run.folder.resolve().parent.name.partition("-")[2] for run in runs]
    if names[0] != names[1]:
        raise UserError(f"{runs[0].folder}, {runs[1].folder}: explain {names[0]} and {names[1]}; give runs of one")
    best, named = best_restarts(runs[0].records), {r["name"]: r for r in runs[0].records}
    found = [
        (named[best[own[0]["target"]]["best"]], sorted(own, key=lambda r: int(r["rank"]))[:MAX_FEATURES])
        for own in group_by(primary_records(runs[1]), "target") if own[0]["target"] in best
    ]  # fmt: skip
    if not found:
        raise UserError(f"{runs[0].folder}, {runs[1].folder}: explain no class in common")
    return found


def _subject(
    runs: Sequence[RunResults], portrait: Record, features: Sequence[Record], most: int, gallery: Gallery
) -> ClassImages:  # fmt: skip
    portraits, *explained = (
        _pictures(run, record, most) for run, record in [(runs[0], portrait), *((runs[1], r) for r in features)]
    )
    known = {"class": portrait["target"], "group": features[0].get("group")}
    first = gallery.add(partial(read_png, portraits[0]), **known)
    return ClassImages(
        portrait["target"], read_png(portraits[0]).shape[-1],
        [first, *(gallery.add(partial(read_png, path)) for path in portraits[1:])],
        [[gallery.add(partial(read_png, path)) for path in own] for own in explained],
    )  # fmt: skip


def _pictures(run: RunResults, record: Record, most: int) -> list[Path]:
    """The first of a prompt's pictures, the one that counts before the others."""
    samples = sorted(name for name in record["images"] if name.startswith("sample_"))
    return [run.image_path(record, name) for name in ["best", *samples][:most]]


def make_boxes(subjects: Sequence[ClassImages], random: Random) -> list[Box]:
    """A page's classes, and the features of each, in the order that `random` draws."""
    asked = random.sample(list(subjects), len(subjects))
    return [
        _box(subject, random.sample(list(subject.feature_images), len(subject.feature_images))) for subject in asked
    ]


def _box(subject: ClassImages, features: Sequence[Sequence[str]]) -> Box:
    asked = subject.class_images[0]
    label = f"{indefinite_article(subject.class_name)} {subject.class_name}"
    core = Question(CORE, f"Do these pictures show {label}?", YES_OR_NO, asked)
    text = "What do the pictures of the features show? Tick all that apply."
    contents = Question(CONTENTS, text, CHOICES, asked, multiple_choice=True)
    whole = Panel("The class as a whole", _called("The class", subject.class_images), [core])
    parts = [Panel(f"Feature {i}", _called(f"Feature {i}", own)) for i, own in enumerate(features, start=1)]
    return Box(f"“{subject.class_name}”", subject.side, [[whole], parts], [contents])


def _called(what: str, pictures: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, f"{what}, picture {i}") for i, name in enumerate(pictures, start=1)]


# --- scoring -------------------------------------------------------------------------------------------------


def score(files: Sequence[Path], key: Mapping[str, Any]) -> list[AnswerCount]:
    """Of the classes of each group and of all: how often the class's pictures were said to show the object, and how
    often each content was ticked. The answers of all participants are pooled; shares of contents may sum to more than
    1, as several may be ticked."""
    answers = read_answers(files, key, {CORE: TRUE_OR_FALSE, CONTENTS: AllowedAnswers(_wanted(), _allowed)})
    group = {picture: known["group"] for picture, known in key["pictures"].items()}
    own = [name for name in BIAS_GROUPS if name in group.values()]
    counts = []
    for name in (*own, ALL):
        said = [a for given in answers for a in given if name in (ALL, group[str(a.image)])]
        core = [a.value for a in said if a.question == CORE]
        contents = [a.value for a in said if a.question == CONTENTS]
        counts.append(AnswerCount(CORE, name, SuccessRate(sum(core), len(core))))
        for choice, _ in CHOICES:
            counts.append(
                AnswerCount(choice, name, SuccessRate(sum(choice in ticked for ticked in contents), len(contents)))
            )
    return counts


def _wanted() -> str:
    return f"a list of {', '.join(name for name, _ in CHOICES)}, the last alone"


def _allowed(value: Any) -> bool:
    names = [name for name, _ in CHOICES]
    if not isinstance(value, list) or not value or not all(name in names for name in value):
        return False
    return len(set(value)) == len(value) and (NONE not in value or len(value) == 1)
