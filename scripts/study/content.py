"""Study of the content of images of a class and of its features (DiffExplainer, Section 4.3, Fig. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from classifier_lens.runner.configuration.value_ranges import PerProblemCount
from classifier_lens.runner.report.totals import SuccessRate
from classifier_lens.runner.result_schema import RESULT, SAMPLES, Record
from classifier_lens.runner.results.reader import RunResults, group_by
from classifier_lens.runner.results.run_folder import read_png
from classifier_lens.runner.types import UserError, indefinite_article
from classifier_lens.scripts.study.pages import (
    YES_OR_NO,
    Box,
    Gallery,
    MakeOptions,
    Panel,
    Question,
    Study,
    check_task,
    primary_records,
    sample_items,
)
from classifier_lens.scripts.study.responses import (
    TRUE_OR_FALSE,
    AllowedResponses,
    ResponseCount,
    read_responses,
)
from classifier_lens.tasks.analysis.activation_score import best_restarts

TITLE = "What do you see?"
INTRODUCTION = (
    "Each box below is about a class of things that a computer recognizes in images. A program generated images of "
    "what the computer takes for the class as a whole, and of the features that contribute most to it. Say what the "
    "images show."
)
TASKS = ("diffexplainer_class", "spurious_audit")  # of the two runs, in the order of the command line
MAX_FEATURES = 5  # per class, those that contribute most
CORE, CONTENTS, NONE = "core", "contents", "none"
CHOICES = (
    ("object", "the whole object"), ("parts", "parts of the object"), ("shape", "its shape"),
    ("texture", "its texture"), ("context", "its surroundings"), (NONE, "none of these"),
)  # fmt: skip
BIAS_GROUPS = ("biased", "medium", "unbiased")  # classes by the number of their features that are annotated as spurious
ALL = "all"


@dataclass
class ContentOptions(MakeOptions):
    """images_per_prompt: largest number of images of the class and of each feature."""

    study: str = "content"
    images_per_prompt: PerProblemCount = 4


@dataclass(frozen=True)
class ClassImages:
    """A class, the side of its images in pixels and the neutral names of images: of the class, the first of which
    responses name, and of its features."""

    class_name: str
    side: int
    class_images: Sequence[str]
    feature_images: Sequence[Sequence[str]]


# --- pages ---------------------------------------------------------------------------------------------------


def build_study(runs: Sequence[RunResults], options: ContentOptions) -> Study:
    """A study of the classes that one run explains and whose features the other audits, both for the same
    classifier."""
    random = Random(f"{options.seed} problems")
    gallery = Gallery(random)
    classes = sample_items(_explained(runs), options.max_items, random)
    subjects = [
        _subject(runs, class_record, feature_records, options.images_per_prompt, gallery)
        for class_record, feature_records in classes
    ]
    return Study(TITLE, INTRODUCTION, dict(zip(TASKS, runs, strict=True)), gallery, partial(make_boxes, subjects))


def _explained(runs: Sequence[RunResults]) -> list[tuple[Record, list[Record]]]:
    """Per class the record of its best restart, and those of its first features by rank."""
    for run, task in zip(runs, TASKS, strict=True):
        check_task(run, task, "content")
    names = [run.folder.resolve().parent.name.partition("-")[2] for run in runs]
    if names[0] != names[1]:
        raise UserError(
            f"{runs[0].folder}, {runs[1].folder}: explain {names[0]} and {names[1]}; give runs of one classifier"
        )
    best, by_name = best_restarts(runs[0].records), {r["name"]: r for r in runs[0].records}
    classes = [
        (
            by_name[best[records[0]["target"]]["best_restart"]],
            sorted(records, key=lambda r: int(r["rank"]))[:MAX_FEATURES],
        )
        for records in group_by(primary_records(runs[1]), "target") if records[0]["target"] in best
    ]  # fmt: skip
    if not classes:
        raise UserError(
            f"{runs[0].folder}, {runs[1].folder}: explain no class in common; give runs with the same classes"
        )
    return classes


def _subject(
    runs: Sequence[RunResults], class_record: Record, features: Sequence[Record], max_images: int, gallery: Gallery
) -> ClassImages:  # fmt: skip
    class_paths, *feature_paths = (
        _image_paths(run, record, max_images)
        for run, record in [(runs[0], class_record), *((runs[1], r) for r in features)]
    )
    metadata = {"class": class_record["target"], "group": features[0].get("group")}
    first = gallery.add(partial(read_png, class_paths[0]), **metadata)
    return ClassImages(
        class_record["target"], read_png(class_paths[0]).shape[-1],
        [first, *(gallery.add(partial(read_png, path)) for path in class_paths[1:])],
        [[gallery.add(partial(read_png, path)) for path in paths] for paths in feature_paths],
    )  # fmt: skip


def _image_paths(run: RunResults, record: Record, max_images: int) -> list[Path]:
    """Paths of the first images of a prompt, the saved one first."""
    samples = SAMPLES.images(record["images"])
    return [run.image_path(record, image) for image in [RESULT, *samples][:max_images]]


def make_boxes(subjects: Sequence[ClassImages], random: Random) -> list[Box]:
    """The boxes of a page: classes, and the features of each, in random order."""
    order = random.sample(list(subjects), len(subjects))
    return [
        _box(subject, random.sample(list(subject.feature_images), len(subject.feature_images))) for subject in order
    ]


def _box(subject: ClassImages, features: Sequence[Sequence[str]]) -> Box:
    image = subject.class_images[0]
    label = f"{indefinite_article(subject.class_name)} {subject.class_name}"
    core = Question(CORE, f"Do these images show {label}?", YES_OR_NO, image)
    text = "What do the images of the features show? Tick all that apply."
    contents = Question(CONTENTS, text, CHOICES, image, multiple_choice=True)
    class_panel = Panel("The class as a whole", _alternative_texts("The class", subject.class_images), [core])
    feature_panels = [
        Panel(f"Feature {i}", _alternative_texts(f"Feature {i}", images)) for i, images in enumerate(features, start=1)
    ]
    return Box(f"“{subject.class_name}”", subject.side, [[class_panel], feature_panels], [contents])


def _alternative_texts(subject: str, images: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, f"{subject}, image {i}") for i, name in enumerate(images, start=1)]


# --- scores --------------------------------------------------------------------------------------------------


def score(files: Sequence[Path], key: Mapping[str, Any]) -> list[ResponseCount]:
    """For the classes of each group and for all classes: how often participants see the object in images of the class,
    and how often each content is ticked. The responses of all participants are pooled; shares of contents may sum to
    more than 1, since several can be ticked."""
    responses = read_responses(
        files, key, {CORE: TRUE_OR_FALSE, CONTENTS: AllowedResponses(_description(), _is_allowed)}
    )
    group_of = {image: metadata["group"] for image, metadata in key["images"].items()}
    present_groups = [name for name in BIAS_GROUPS if name in group_of.values()]
    counts = []
    for name in (*present_groups, ALL):
        group_responses = [
            response
            for participant_responses in responses
            for response in participant_responses
            if name in (ALL, group_of[str(response.image)])
        ]
        core = [response.value for response in group_responses if response.question == CORE]
        contents = [response.value for response in group_responses if response.question == CONTENTS]
        counts.append(ResponseCount(CORE, name, SuccessRate(sum(core), len(core))))
        for choice, _ in CHOICES:
            counts.append(
                ResponseCount(choice, name, SuccessRate(sum(choice in choices for choices in contents), len(contents)))
            )
    return counts


def _description() -> str:
    return f"a list of {', '.join(name for name, _ in CHOICES)}, the last one alone"


def _is_allowed(value: Any) -> bool:
    names = [name for name, _ in CHOICES]
    if not isinstance(value, list) or not value or not all(name in names for name in value):
        return False
    return len(set(value)) == len(value) and (NONE not in value or len(value) == 1)
