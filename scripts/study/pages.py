"""What all user studies share: pages that ask, the key to what they show, and answers; see `scripts/user_study.py`.

A page is made of boxes, in an order of its participant's own. Nothing on it or beside it tells which run a picture
comes from: that stands in the key.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from classifier_lens.runner.configuration.value_ranges import PerProblemCount, Seed
from classifier_lens.runner.files.atomic import DamagedFileError, write_durable
from classifier_lens.runner.report.page import TEMPLATES
from classifier_lens.runner.report.totals import SuccessRate
from classifier_lens.runner.results.integrity import parse_object
from classifier_lens.runner.results.reader import Record, RunResults, read_run
from classifier_lens.runner.results.run_folder import read_png, write_png
from classifier_lens.runner.types import UserError

METHODS = ("A", "B")  # two runs that are compared, in the order in which they are given
SMALL_IMAGE_SIDE = 160  # px; narrower images are enlarged with hard pixel edges
YES_OR_NO = ((True, "yes"), (False, "no"))


@dataclass
class MakeOptions:
    """study: its kind; out: folder of the pages; participants: how many pages; max_items: problems, features or classes
    at most; seed: of every choice."""

    study: str
    out: str = "outputs/study"
    participants: PerProblemCount = 1
    max_items: PerProblemCount = 30
    seed: Seed = 0


# --- what a page shows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """name: in answers; choices: what an answer may be, and how that reads; image: which one is asked about, None for a
    question about the box; multiple_choice: whether several choices may be ticked, of which the last excludes the
    others."""

    name: str
    text: str
    choices: Sequence[tuple[Any, str]]
    image: str | None
    multiple_choice: bool = False


@dataclass(frozen=True)
class Panel:
    """Pictures under a heading, with the questions about them. images: neutral names and what they are called."""

    heading: str
    images: Sequence[tuple[str, str]]
    questions: Sequence[Question] = ()


@dataclass(frozen=True)
class Box:
    """What is seen together. image_size: of its pictures in pixels; rows: panels beside each other; questions: below
    them."""

    title: str
    image_size: int
    rows: Sequence[Sequence[Panel]]
    questions: Sequence[Question]

    @property
    def is_small(self) -> bool:
        return self.image_size <= SMALL_IMAGE_SIDE


@dataclass
class Gallery:
    """Pictures under names that say nothing of them. images: each is read when it is copied; metadata: what the key
    says of those that are asked about."""

    random: Random
    images: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    metadata: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def add(self, picture: Callable[[], Tensor], **known: Any) -> str:
        """The name that a picture gets."""
        name = f"{self.random.getrandbits(48):012x}"
        self.images[name] = picture
        if known:
            self.metadata[name] = known
        return name

    def add_results(self, runs: Sequence[RunResults], both: Sequence[Record]) -> dict[str, str]:
        """Two runs' answers to one problem, names by method."""
        return {
            method: self.add(partial(read_png, run.image_path(r, "best")), problem=r["name"], method=method)
            for method, run, r in zip(METHODS, runs, both, strict=True)
        }

    def write(self, folder: Path) -> None:
        """Copy the pictures; neither the names nor the order of the copies tell runs apart."""
        for name in sorted(self.images):
            write_png(folder / f"{name}.png", self.images[name]())


@dataclass(frozen=True)
class Study:
    """What is asked of people. title, introduction: at the head of a page; runs: by what the key calls them; boxes: a
    page's, in an order that is drawn without a look at the pictures."""

    title: str
    introduction: str
    runs: Mapping[str, RunResults]
    gallery: Gallery
    boxes: Callable[[Random], Sequence[Box]]


# --- making --------------------------------------------------------------------------------------------------


def make_pages(
    build_study: Callable[[Sequence[RunResults], Any], Study], folders: Sequence[Path], chosen: MakeOptions
) -> list[Path]:
    """Write the pages of a study, the pictures they show and the key; returns the pages and, last, the key.

    Raises UserError where pages could not be told from older ones, and whatever `build_study` raises.
    """
    out = Path(chosen.out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out}: is not empty; give a new folder, or the key would no longer fit")
    study = build_study([read_run(folder) for folder in folders], chosen)
    study.gallery.write(out / "pictures")
    key = {
        "kind": chosen.study, "seed": chosen.seed, "runs": {name: str(run.folder) for name, run in study.runs.items()},
        "pictures": study.gallery.metadata,
    }  # fmt: skip
    number = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:10]
    pages = [out / f"study-{page + 1}.html" for page in range(chosen.participants)]
    for i, page in enumerate(pages, start=1):
        write_durable(page, render_page(study, number, i, Random(f"{chosen.seed} page {i}")))
    key_file = out.with_name(f"{out.name}-key.json")
    write_durable(key_file, json.dumps({"study": number, **key}, indent=1))
    return [*pages, key_file]


def render_page(study: Study, study_id: str, page: int, random: Random) -> str:
    """A participant's page. study_id: of the study, which answers name."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    template = environment.get_template("study.html.j2")
    return template.render(
        study=study_id, page=page, title=study.title, introduction=study.introduction, boxes=study.boxes(random)
    )


def sample_items(asked: Sequence[Any], most: int, random: Random) -> list[Any]:
    """So many at most, in an order of chance."""
    return random.sample(list(asked), min(most, len(asked)))


def check_task(run: RunResults, task: str, study: str) -> None:
    """Raises UserError if a run is of another task."""
    if run.task != task:
        raise UserError(f"{run.folder}: task={run.task}; study={study} takes a run of task={task} here")


def primary_records(run: RunResults) -> list[Record]:
    """The records of an audit's first objective, which decides. Raises UserError if there are none."""
    objective = run.config["task"]["objectives"][0]
    records = [r for r in run.records if r["objective"] == objective]
    if not records:
        raise UserError(f"{run.folder}: holds no answer of objective {objective} yet; the same command continues it")
    return records


def matching_records(
    runs: Sequence[RunResults], records: Sequence[Sequence[Record]], keys: Sequence[str], pictures: Sequence[str]
) -> list[tuple[Record, ...]]:
    """The records of all runs that have the same name, by name. keys, pictures: what these have to agree in.

    Raises UserError where they do not.
    """
    named = [{r["name"]: r for r in own} for own in records]
    found = [tuple(own[name] for own in named) for name in sorted(set.intersection(*map(set, named)))]
    for same in found:
        files = zip(runs, same, strict=True)
        seen = [[r[key] for key in keys] + [run.image_path(r, p).read_bytes() for p in pictures] for run, r in files]
        if any(other != seen[0] for other in seen):
            raise UserError(f"{same[0]['name']}: the runs do not answer the same question; give runs of the same one")
    return found


# --- scoring -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """image: which one was asked about, None where the whole box was."""

    question: str
    image: str | None
    value: Any


@dataclass(frozen=True)
class AllowedAnswers:
    """What answers a question may have. description: in words; per_image: whether it is about pictures of the key."""

    description: str
    is_allowed: Callable[[Any], bool]
    per_image: bool = True


TRUE_OR_FALSE = AllowedAnswers("true or false", lambda value: isinstance(value, bool))


@dataclass(frozen=True)
class Scores:
    """What the answers say, as rows of a table and as lines for the console."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    lines: Sequence[str]

    def table(self) -> str:
        """The rows as CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


@dataclass(frozen=True)
class AnswerCount:
    """How often a question was answered with yes. group: a method, or a group of classes."""

    question: str
    group: str
    rate: SuccessRate


def summarize_counts(counts: Sequence[AnswerCount], group_name: str) -> Scores:
    """Shares with their 95 % Wilson intervals. group_name: what the counts are of, as the column's name."""
    rows, lines = [], []
    for c in counts:
        (low, high), known = c.rate.interval, c.rate.total > 0
        share = f"{c.rate.value:.4f}" if known else ""
        rows.append([c.question, c.group, c.rate.successes, c.rate.total, share, f"{low:.4f}", f"{high:.4f}"])
        share = f"{100 * c.rate.value:5.1f} %" if known else "      –"
        ends = f"[{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(f"{c.question:<10} {c.group:<9} {share}  {ends}  {c.rate.successes} of {c.rate.total}")
    return Scores(["question", group_name, "yes", "answers", "share", "low", "high"], rows, lines)


def read_answers(
    files: Sequence[Path], key: Mapping[str, Any], asked: Mapping[str, AllowedAnswers]
) -> list[list[Answer]]:
    """The answers of every file, one file per participant; questions that were left out are not among them.

    Raises UserError for a file given twice or of another study, a question that was not asked, a picture that the key
    does not know or that is answered twice, and a value that is not allowed.
    """
    if len({file.resolve() for file in files}) < len(files):
        raise UserError("an answer file is given twice")
    return [list(_answers(file, key, asked)) for file in files]


def _answers(file: Path, key: Mapping[str, Any], asked: Mapping[str, AllowedAnswers]) -> Iterator[Answer]:
    content = read_object(file)
    if content.get("study") != key["study"]:
        raise UserError(f"{file}: answers the study {content.get('study')}, the key is that of {key['study']}")
    boxes = content.get("answers")
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise UserError(f"{file}: answers: wanted is a list with an object per box, as a page saves it")
    seen: set[tuple[str, str | None]] = set()
    for question, given in (item for box in boxes for item in box.items()):
        if question not in asked:
            raise UserError(f"{file}: {question}: was not asked; asked were {', '.join(asked)}")
        known = asked[question]
        if known.per_image != isinstance(given, dict):
            wanted = "an answer per picture" if known.per_image else known.description
            raise UserError(f"{file}: {question}={given}; wanted is {wanted}")
        for picture, value in given.items() if known.per_image else [(None, given)]:
            if picture is not None and picture not in key["pictures"]:
                raise UserError(f"{file}: {question}={given}; wanted is a picture of the key, not {picture}")
            if not known.is_allowed(value):
                raise UserError(f"{file}: {question}={given}; wanted is {known.description}")
            if picture is not None and (question, picture) in seen:
                raise UserError(f"{file}: {question}: {picture} is answered twice")
            seen.add((question, picture))
            yield Answer(question, picture, value)


def read_key(file: Path) -> dict[str, Any]:
    """The key that `make` wrote. Raises UserError if the file is none."""
    key = read_object(file)
    if missing := {"study", "kind", "runs", "pictures"} - key.keys():
        raise UserError(f"key={file}: is no key, {', '.join(sorted(missing))} is missing")
    return key


def read_object(file: Path) -> dict[str, Any]:
    """A file that holds a JSON object. Raises UserError if there is none."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        return parse_object(file.read_bytes())
    except DamagedFileError as error:
        raise UserError(f"{file}: {error}") from error
