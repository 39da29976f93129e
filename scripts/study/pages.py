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

from classifier_lens.runner.configuration.value_ranges import Repeats, Seed
from classifier_lens.runner.files.atomic import Damaged, write
from classifier_lens.runner.report.figures.drawing import SMALL_IMAGE_SIDE
from classifier_lens.runner.report.page import TEMPLATES
from classifier_lens.runner.report.totals import SuccessRate
from classifier_lens.runner.results.integrity import parse_object
from classifier_lens.runner.results.reader import Record, Run, read_run
from classifier_lens.runner.results.run_folder import read_png, write_png
from classifier_lens.runner.types import UserError

METHODS = ("A", "B")  # two runs that are compared, in the order in which they are given
YES_OR_NO = ((True, "yes"), (False, "no"))


@dataclass
class Make:
    """study: its kind; out: folder of the pages; participants: how many pages; most: problems, features or classes at
    most; seed: of every choice."""

    study: str
    out: str = "outputs/study"
    participants: Repeats = 1
    most: Repeats = 30
    seed: Seed = 0


# --- what a page shows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """name: in answers; choices: what an answer may be, and how that reads; picture: which one is asked about, None for
    a question about the box; several: whether several choices may be ticked, of which the last excludes the others."""

    name: str
    text: str
    choices: Sequence[tuple[Any, str]]
    picture: str | None
    several: bool = False


@dataclass(frozen=True)
class Panel:
    """Pictures under a heading, with the questions about them. pictures: neutral names and what they are called."""

    heading: str
    pictures: Sequence[tuple[str, str]]
    questions: Sequence[Question] = ()


@dataclass(frozen=True)
class Box:
    """What is seen together. side: of its pictures in pixels; rows: panels beside each other; questions: below them."""

    title: str
    side: int
    rows: Sequence[Sequence[Panel]]
    questions: Sequence[Question]

    @property
    def small(self) -> bool:
        return self.side <= SMALL_IMAGE_SIDE


@dataclass
class Gallery:
    """Pictures under names that say nothing of them. pictures: each is read when it is copied; known: what the key says
    of those that are asked about."""

    random: Random
    pictures: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    known: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def add(self, picture: Callable[[], Tensor], **known: Any) -> str:
        """The name that a picture gets."""
        name = f"{self.random.getrandbits(48):012x}"
        self.pictures[name] = picture
        if known:
            self.known[name] = known
        return name

    def add_answers(self, runs: Sequence[Run], both: Sequence[Record]) -> dict[str, str]:
        """Two runs' answers to one problem, names by method."""
        return {
            method: self.add(partial(read_png, run.picture(r, "best")), problem=r["name"], method=method)
            for method, run, r in zip(METHODS, runs, both, strict=True)
        }

    def write(self, folder: Path) -> None:
        """Copy the pictures; neither the names nor the order of the copies tell runs apart."""
        for name in sorted(self.pictures):
            write_png(folder / f"{name}.png", self.pictures[name]())


@dataclass(frozen=True)
class Study:
    """What is asked of people. title, introduction: at the head of a page; runs: by what the key calls them; boxes: a
    page's, in an order that is drawn without a look at the pictures."""

    title: str
    introduction: str
    runs: Mapping[str, Run]
    gallery: Gallery
    boxes: Callable[[Random], Sequence[Box]]


# --- making --------------------------------------------------------------------------------------------------


def make(ask: Callable[[Sequence[Run], Any], Study], folders: Sequence[Path], chosen: Make) -> list[Path]:
    """Write the pages of a study, the pictures they show and the key; returns the pages and, last, the key.

    Raises UserError where pages could not be told from older ones, and whatever `ask` raises.
    """
    out = Path(chosen.out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"out={out}: is not empty; give a new folder, or the key would no longer fit")
    study = ask([read_run(folder) for folder in folders], chosen)
    study.gallery.write(out / "pictures")
    key = {
        "kind": chosen.study, "seed": chosen.seed, "runs": {name: str(run.folder) for name, run in study.runs.items()},
        "pictures": study.gallery.known,
    }  # fmt: skip
    number = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:10]
    pages = [out / f"study-{page + 1}.html" for page in range(chosen.participants)]
    for i, page in enumerate(pages, start=1):
        write(page, render(study, number, i, Random(f"{chosen.seed} page {i}")))
    key_file = out.with_name(f"{out.name}-key.json")
    write(key_file, json.dumps({"study": number, **key}, indent=1))
    return [*pages, key_file]


def render(study: Study, number: str, page: int, random: Random) -> str:
    """A participant's page. number: of the study, which answers name."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    template = environment.get_template("study.html.j2")
    return template.render(
        study=number, page=page, title=study.title, introduction=study.introduction, boxes=study.boxes(random)
    )


def drawn(asked: Sequence[Any], most: int, random: Random) -> list[Any]:
    """So many at most, in an order of chance."""
    return random.sample(list(asked), min(most, len(asked)))


def check_task(run: Run, task: str, study: str) -> None:
    """Raises UserError if a run is of another task."""
    if run.task != task:
        raise UserError(f"{run.folder}: task={run.task}; study={study} takes a run of task={task} here")


def deciding(run: Run) -> list[Record]:
    """The records of an audit's first objective, which decides. Raises UserError if there are none."""
    objective = run.config["task"]["objectives"][0]
    records = [r for r in run.records if r["objective"] == objective]
    if not records:
        raise UserError(f"{run.folder}: holds no answer of objective {objective} yet; the same command continues it")
    return records


def common(
    runs: Sequence[Run], records: Sequence[Sequence[Record]], keys: Sequence[str], pictures: Sequence[str]
) -> list[tuple[Record, ...]]:
    """The records of all runs that have the same name, by name. keys, pictures: what these have to agree in.

    Raises UserError where they do not.
    """
    named = [{r["name"]: r for r in own} for own in records]
    found = [tuple(own[name] for own in named) for name in sorted(set.intersection(*map(set, named)))]
    for same in found:
        files = zip(runs, same, strict=True)
        seen = [[r[key] for key in keys] + [run.picture(r, p).read_bytes() for p in pictures] for run, r in files]
        if any(other != seen[0] for other in seen):
            raise UserError(f"{same[0]['name']}: the runs do not answer the same question; give runs of the same one")
    return found


# --- scoring -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """picture: which one was asked about, None where the whole box was."""

    question: str
    picture: str | None
    value: Any


@dataclass(frozen=True)
class Asked:
    """What answers a question may have. wanted: in words; of_pictures: whether it is about pictures of the key."""

    wanted: str
    allows: Callable[[Any], bool]
    of_pictures: bool = True


TRUE_OR_FALSE = Asked("true or false", lambda value: isinstance(value, bool))


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
class Count:
    """How often a question was answered with yes. of: a method, or a group of classes."""

    question: str
    of: str
    rate: SuccessRate


def counted(counts: Sequence[Count], by: str) -> Scores:
    """Shares with their 95 % Wilson intervals. by: what the counts are of, as the column's name."""
    rows, lines = [], []
    for c in counts:
        (low, high), known = c.rate.interval, c.rate.total > 0
        share = f"{c.rate.value:.4f}" if known else ""
        rows.append([c.question, c.of, c.rate.successes, c.rate.total, share, f"{low:.4f}", f"{high:.4f}"])
        share = f"{100 * c.rate.value:5.1f} %" if known else "      –"
        ends = f"[{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(f"{c.question:<10} {c.of:<9} {share}  {ends}  {c.rate.successes} of {c.rate.total}")
    return Scores(["question", by, "yes", "answers", "share", "low", "high"], rows, lines)


def read_answers(files: Sequence[Path], key: Mapping[str, Any], asked: Mapping[str, Asked]) -> list[list[Answer]]:
    """The answers of every file, one file per participant; questions that were left out are not among them.

    Raises UserError for a file given twice or of another study, a question that was not asked, a picture that the key
    does not know or that is answered twice, and a value that is not allowed.
    """
    if len({file.resolve() for file in files}) < len(files):
        raise UserError("an answer file is given twice")
    return [list(_answers(file, key, asked)) for file in files]


def _answers(file: Path, key: Mapping[str, Any], asked: Mapping[str, Asked]) -> Iterator[Answer]:
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
        if known.of_pictures != isinstance(given, dict):
            wanted = "an answer per picture" if known.of_pictures else known.wanted
            raise UserError(f"{file}: {question}={given}; wanted is {wanted}")
        for picture, value in given.items() if known.of_pictures else [(None, given)]:
            if picture is not None and picture not in key["pictures"]:
                raise UserError(f"{file}: {question}={given}; wanted is a picture of the key, not {picture}")
            if not known.allows(value):
                raise UserError(f"{file}: {question}={given}; wanted is {known.wanted}")
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
    except Damaged as error:
        raise UserError(f"{file}: {error}") from error
