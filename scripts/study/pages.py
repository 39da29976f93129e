"""Pages of user studies, their images and the key; see `scripts/user_study.py`.

A page consists of boxes, in a random order per participant. Neither the page nor its images tell which run an image
comes from; the key has this."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from classifier_lens.runner.configuration.value_ranges import PerProblemCount, Seed
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.report.page import TEMPLATES
from classifier_lens.runner.result_schema import RESULT, ImageField, Record
from classifier_lens.runner.results.reader import RunResults, read_run
from classifier_lens.runner.results.run_folder import read_png, write_png
from classifier_lens.runner.types import UserError

METHODS = ("A", "B")  # the two compared runs, in the order of the command line
SMALL_IMAGE_SIDE = 160  # px; smaller images are enlarged without smoothing
YES_OR_NO = ((True, "yes"), (False, "no"))


@dataclass
class MakeOptions:
    """Options of `make`. study: kind of study; out: folder of the pages; participants: number of pages; max_items:
    largest number of problems, features or classes; seed: of all random choices."""

    study: str
    out: str = "outputs/study"
    participants: PerProblemCount = 1
    max_items: PerProblemCount = 30
    seed: Seed = 0


# --- content of a page ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """name: in responses; choices: values and their labels; image: name of the image in question, None for a question
    about the box; multiple_choice: whether several choices may be ticked, of which the last excludes the others."""

    name: str
    text: str
    choices: Sequence[tuple[Any, str]]
    image: str | None
    multiple_choice: bool = False


@dataclass(frozen=True)
class Panel:
    """Images under a heading, with questions about them. images: neutral names and alternative texts."""

    heading: str
    images: Sequence[tuple[str, str]]
    questions: Sequence[Question] = ()


@dataclass(frozen=True)
class Box:
    """Panels that are shown together. image_size: side of the images in pixels; rows: panels side by side; questions:
    below them."""

    title: str
    image_size: int
    rows: Sequence[Sequence[Panel]]
    questions: Sequence[Question]

    @property
    def is_small(self) -> bool:
        return self.image_size <= SMALL_IMAGE_SIDE


@dataclass
class Gallery:
    """Images under neutral names. images: read when they are copied; metadata: entries of the key for images with
    questions."""

    random: Random
    images: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    metadata: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def add(self, image: Callable[[], Tensor], **metadata: Any) -> str:
        """Add an image; returns its neutral name."""
        name = f"{self.random.getrandbits(48):012x}"
        self.images[name] = image
        if metadata:
            self.metadata[name] = metadata
        return name

    def add_results(self, runs: Sequence[RunResults], record_pair: Sequence[Record]) -> dict[str, str]:
        """Add the results of two runs for one problem; returns the names by method."""
        return {
            method: self.add(partial(read_png, run.image_path(record, RESULT)), problem=record["name"], method=method)
            for method, run, record in zip(METHODS, runs, record_pair, strict=True)
        }

    def write(self, folder: Path) -> None:
        """Copy the images; neither the names nor the order of the copies tell the runs apart."""
        for name in sorted(self.images):
            write_png(folder / f"{name}.png", self.images[name]())


@dataclass(frozen=True)
class Study:
    """The content of a study. title, introduction: at the top of a page; runs: by their names in the key; boxes: of a
    page, in an order that does not depend on the images."""

    title: str
    introduction: str
    runs: Mapping[str, RunResults]
    gallery: Gallery
    boxes: Callable[[Random], Sequence[Box]]


# --- making --------------------------------------------------------------------------------------------------


def make_pages(
    build_study: Callable[[Sequence[RunResults], Any], Study], folders: Sequence[Path], options: MakeOptions
) -> list[Path]:
    """Write the pages of a study, their images and the key; returns the paths of the pages and, last, of the key.

    Raises UserError if the folder is not empty, and the errors of `build_study`.
    """
    out = Path(options.out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out}: is not empty, and its pages would not match the new key; give a new folder")
    study = build_study([read_run(folder) for folder in folders], options)
    study.gallery.write(out / "images")
    key = {
        "kind": options.study, "seed": options.seed,
        "runs": {name: str(run.folder) for name, run in study.runs.items()}, "images": study.gallery.metadata,
    }  # fmt: skip
    study_id = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:10]
    pages = [out / f"study-{page + 1}.html" for page in range(options.participants)]
    for i, page in enumerate(pages, start=1):
        write_durable(page, render_page(study, study_id, i, Random(f"{options.seed} page {i}")))
    key_file = out.with_name(f"{out.name}-key.json")
    write_durable(key_file, json.dumps({"study": study_id, **key}, indent=1))
    return [*pages, key_file]


def render_page(study: Study, study_id: str, page: int, random: Random) -> str:
    """The HTML of a participant's page. study_id: saved with the responses."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    template = environment.get_template("study.html.j2")
    return template.render(
        study=study_id, page=page, title=study.title, introduction=study.introduction, boxes=study.boxes(random)
    )


def sample_items(items: Sequence[Any], max_items: int, random: Random) -> list[Any]:
    """At most `max_items` items, in random order."""
    return random.sample(list(items), min(max_items, len(items)))


def check_task(run: RunResults, task: str, study: str) -> None:
    """Raise UserError if a run is of another task."""
    if run.task != task:
        raise UserError(f"{run.folder}: task={run.task}; study={study} needs a run of task={task} here")


def primary_records(run: RunResults) -> list[Record]:
    """The records of the first objective of an audit. Raises UserError if there are none."""
    objective = run.config["task"]["objectives"][0]
    records = [r for r in run.records if r["objective"] == objective]
    if not records:
        raise UserError(f"{run.folder}: has no result of objective {objective} yet; the same command continues the run")
    return records


def matching_records(
    runs: Sequence[RunResults], records: Sequence[Sequence[Record]], keys: Sequence[str], images: Sequence[ImageField]
) -> list[tuple[Record, ...]]:
    """The records with the same name in all runs, sorted by name. keys, images: entries and images in which they
    have to agree.

    Raises UserError if they do not.
    """
    records_by_name = [{r["name"]: r for r in run_records} for run_records in records]
    matches = [
        tuple(run_records[name] for run_records in records_by_name)
        for name in sorted(set.intersection(*map(set, records_by_name)))
    ]
    for group in matches:
        files = zip(runs, group, strict=True)
        values = [
            [r[key] for key in keys] + [run.image_path(r, image).read_bytes() for image in images] for run, r in files
        ]
        if any(value != values[0] for value in values):
            raise UserError(
                f"{group[0]['name']}: the runs have different problems of this name; give runs with the same problems"
            )
    return matches
