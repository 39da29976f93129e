"""A run folder as one static page, `index.html`: built from the folder's files alone, read without a network.

`python scripts/page.py <run folder>` writes it again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, UnidentifiedImageError
from scipy.stats import binomtest

from classifier_lens.runner.files.atomic import Damaged, put, read
from classifier_lens.runner.report.charts import Chart, charts, number
from classifier_lens.runner.report.tables import tables, words
from classifier_lens.runner.report.totals import read_first
from classifier_lens.runner.results.integrity import parse_object
from classifier_lens.runner.results.reader import ANEW, read_config, read_object
from classifier_lens.runner.types import UserError

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "index.html"
FILES = ("config.yaml", "results.jsonl", "summary.json", "status.json")
SHOWN = 1_000  # problems on a page, 10 kB each; browsers take no hundreds of megabytes
SMALL = 160  # px; narrower pictures are enlarged with hard pixel edges

# Keys of a result that have a place of their own on its card; what else is a plain value goes into a table.
PLACED = frozenset(
    (
        *("name", "success", "criterion", "success_start", "verdict", "source", "target"),
        *("predicted_before", "predicted_start", "predicted_after"),
        *("confidence_before", "confidence_start", "confidence_after"),
        *("caption", "prompt", "loss", "warnings", "images", "history"),
        *("digest", "digests"),
    )
)
LABELS = {
    "original": "Original",
    "start": "Start",
    "best": "Result",
    "difference": "Difference",
    "mask": "Mask",
    "training": "Best training picture",
    "worded": "Best picture of the word",
    "attack": "Feature attack",
    "found": "Where the class is found",
    "cam-training": "Where the unit looks in it",
    "cam-before": "Where the unit looks, before",
    "cam-after": "Where the unit looks, after",
}
STATES = {
    "done": "complete",
    "running": "still running",
    "failed": "failed",
    "stopped": "stopped early",
    "pending": "waiting for other processes",
}


@dataclass(frozen=True)
class Picture:
    """An existing picture of the run folder; `link` is its address relative to the page."""

    key: str
    label: str
    alt: str
    link: str
    width: int
    height: int

    @property
    def small(self) -> bool:
        return self.width <= SMALL

    @property
    def sample(self) -> bool:
        """Whether it is one of many pictures of an answer."""
        return self.key.startswith("sample_")


@dataclass(frozen=True)
class Bar:
    """A class's confidence in [0, 1] by stage: before, at the start of optimization where that is an image of its own,
    and after; None where it was not measured."""

    name: str
    role: str
    stages: list[tuple[str, float | None]]


@dataclass(frozen=True)
class Card:
    """One problem, ready to be shown. success: None where nothing can succeed; criterion: what a success is, with the
    numbers; start_reaches: whether the start of optimization was a success already; verdict: of an audit."""

    name: str
    success: bool | None
    criterion: str
    start_reaches: bool
    verdict: str
    source: str
    target: str
    predicted: list[tuple[str, str]]
    caption: str
    prompt: str
    pictures: list[Picture]
    bars: list[Bar]
    charts: list[Chart]
    loss: list[tuple[str, str]]
    values: list[tuple[str, str]]
    warnings: list[str]


@dataclass(frozen=True)
class Rate:
    """A share of successes with its 95 % Wilson interval."""

    successes: int
    total: int

    @property
    def value(self) -> float:
        return self.successes / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        if self.total == 0:
            return 0.0, 1.0  # nothing seen says nothing
        ends = binomtest(self.successes, self.total).proportion_ci(method="wilson")
        return float(ends.low), float(ends.high)


def write_report(run_folder: Path) -> Path:
    """Write the page of a run folder beside its files, in one stroke, and return its path."""
    if not run_folder.is_dir():
        raise UserError(f"{run_folder}: no such run folder; give outputs/<task>/<generator>-<classifier>/<hash>")
    page = run_folder / PAGE
    put(page, render(run_folder))
    return page


def render(run_folder: Path) -> str:
    """The page as text."""
    folder = run_folder.resolve()
    config = read_config(folder / "config.yaml")
    records, tally = read_first(folder / "results.jsonl", SHOWN)
    files = ("status.json", "summary.json", "manifest.json")
    status, summary, manifest = (read_object(folder / name) for name in files)
    total = manifest.get("total")
    cards = [_card(folder, record) for record in records]
    generator, _, classifier = folder.parent.name.partition("-")
    state = str(status.get("state", ""))
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            task=folder.parent.parent.name,
            generator=generator,
            classifier=classifier,
            key=folder.name,
            command=str(config.get("command") or ""),
            config=_text(folder / "config.yaml"),
            state=STATES.get(state, state),
            reason=str(status.get("reason") or ""),
            unseen=[str(line) for line in manifest.get("unseen") or []],
            total=total,
            beyond=0 if total is None else max(total - len(manifest.get("problems") or {}), 0),
            failed=int(status.get("failed") or 0),
            pending=int(status.get("pending") or 0),
            failures=[(str(f.get("name", "")), str(f.get("error", ""))) for f in status.get("failures") or []],
            seconds=median(tally.seconds) if tally.seconds else None,
            prepared=_longest_preparation(folder),
            rate=Rate(tally.successes, tally.judged) if tally.judged else None,
            at_start=tally.at_start,
            finished=tally.finished,
            summary=[(words(key), number(value)) for key, value in _plain(summary)],
            tables=tables(summary),
            cards=cards,
            sources=sorted({card.source for card in cards if card.source}),
            targets=sorted({card.target for card in cards if card.target}),
            files=[name for name in FILES if (folder / name).is_file()],
        )
    )


def environment() -> Environment:
    """The templates of pages; what a template asks for and is not given is an error."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"percent": percent, "number": number}
    return found


def percent(share: float, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage, with a space that does not break."""
    return f"{100 * share:.{digits}f}\u00a0%"


# --- reading -------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


# --- one problem ---------------------------------------------------------------------------------------------


def _card(folder: Path, record: Mapping[str, Any]) -> Card:
    success = record.get("success")
    target = str(record.get("target") or "")
    return Card(
        name=str(record.get("name", "")),
        success=success if isinstance(success, bool) else None,
        criterion=str(record.get("criterion") or ""),
        start_reaches=record.get("success_start") is True,
        verdict=str(record.get("verdict") or ""),
        source=str(record.get("source") or ""),
        target=target,
        predicted=[(stage, str(record.get(f"predicted_{stage}") or "")) for stage in _stages(record, "predicted")],
        caption=str(record.get("caption") or ""),
        prompt=str(record.get("prompt") or ""),
        pictures=_pictures(folder, record),
        bars=_bars(record),
        charts=charts(record, target),
        loss=_loss(record.get("loss") or {}),
        values=[(words(key), number(value)) for key, value in _plain(record)],
        warnings=[str(warning) for warning in record.get("warnings") or []],
    )


def _pictures(folder: Path, record: Mapping[str, Any]) -> list[Picture]:
    """The record's pictures that exist within the folder, the known ones first."""
    images = record.get("images") or {}
    order = [key for key in LABELS if key in images] + sorted(key for key in images if key not in LABELS)
    return [picture for key in order if (picture := _picture(folder, record, key, str(images[key])))]


def _picture(folder: Path, record: Mapping[str, Any], key: str, path: str) -> Picture | None:
    file = (folder / path).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        return None
    try:
        with Image.open(file, formats=["PNG"]) as image:
            width, height = image.size
    except UnidentifiedImageError:
        print(f"{file}: is no image; left out, {ANEW}", file=sys.stderr)
        return None
    label = LABELS.get(key, words(key).capitalize())
    if key == "best" and "original" not in (record.get("images") or {}):
        label = "Result"
    of = {"original": record.get("source"), "best": record.get("target")}.get(key)
    alt = f"{label} of {record.get('name', '')}" + (f": {of}" if of else "")
    return Picture(key, label, alt, quote(file.relative_to(folder).as_posix()), width, height)


def _stages(record: Mapping[str, Any], measured: str) -> list[str]:
    """The stages of an answer that were measured. The start is one of its own where an original was changed before the
    first step, and steps were made after it."""
    own = bool(record.get("steps")) and "original" in (record.get("images") or {})
    return [s for s in ("before", "start", "after") if record.get(f"{measured}_{s}") and (own or s != "start")]


def _bars(record: Mapping[str, Any]) -> list[Bar]:
    """Confidences by class: the target, the source, then the others by what became of them."""
    by_stage = {stage: record[f"confidence_{stage}"] for stage in _stages(record, "confidence")}
    roles = {record.get("source"): "source", record.get("target"): "target"}
    names = dict.fromkeys(name for confidences in by_stage.values() for name in confidences)
    bars = [Bar(name, roles.get(name, ""), [(s, c.get(name)) for s, c in by_stage.items()]) for name in names]
    rank = {"target": 0, "source": 1, "": 2}
    return sorted(bars, key=lambda bar: (rank[bar.role], -(bar.stages[-1][1] or 0.0)))


def _loss(parts: Mapping[str, Any] | float) -> list[tuple[str, str]]:
    """The loss by part, the total last; a single number is the total."""
    if not isinstance(parts, Mapping):
        return [("total", number(parts))]
    order = [key for key in parts if key != "total"] + [key for key in parts if key == "total"]
    return [(words(key), number(parts[key])) for key in order]


def _plain(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What has no place of its own and is a number, a text or a truth value, nested ones under joined names."""
    for key, value in values.items():
        if not prefix and key in PLACED:
            continue
        if isinstance(value, Mapping):
            yield from _plain(value, f"{prefix}{key}: ")
        elif value is None or isinstance(value, (bool, int, float, str)):
            yield f"{prefix}{key}", value


def _longest_preparation(folder: Path) -> float | None:
    """Seconds that loading and preparing the problems took, of the process that they took longest."""
    values = []
    for path in sorted(folder.glob("attempts/*.json")):
        with suppress(FileNotFoundError, Damaged):  # nothing is asked again because of it
            values.append(parse_object(read(path)).get("prepared"))
    return max((float(value) for value in values if isinstance(value, (int, float)) and value > 0), default=None)


def main(arguments: Sequence[str]) -> int:
    """Write the page of the run folder named on the command line."""
    if len(arguments) != 1:
        print("usage: python scripts/page.py <run folder>", file=sys.stderr)
        return 2
    try:
        print(write_report(Path(arguments[0])))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
