"""A run folder as one static page, `index.html`: built from the folder's files alone, read without a network.

`python scripts/page.py <run folder>` writes it again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from classifier_lens.runner.files.atomic import DamagedFileError, read, write_atomic
from classifier_lens.runner.report.cards import Settings, make_card
from classifier_lens.runner.report.findings import Names
from classifier_lens.runner.report.headlines import first_sentence, headline_of
from classifier_lens.runner.report.result_keys import ATTEMPT, MANIFEST, current_summary, renamed
from classifier_lens.runner.report.tables import plain_values, tables
from classifier_lens.runner.report.totals import SuccessRate, Totals, read_first
from classifier_lens.runner.report.wording import duration, format_number, percent
from classifier_lens.runner.results.integrity import parse_object
from classifier_lens.runner.results.reader import RUN_FOLDER_HINT, read_config, read_object
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.result_schemas import result_schema

TEMPLATES = Path(__file__).parent / "templates"
PAGE_FILE = "index.html"
LINKED_FILES = ("config.yaml", "results.jsonl", "summary.json", "status.json")
MAX_CARDS = 1_000  # problems on a page, 10 kB each; browsers take no hundreds of megabytes
STATE_TEXTS = {
    "done": "complete",
    "running": "still running",
    "failed": "failed",
    "stopped": "stopped early",
    "pending": "waiting for other processes",
}
MIN_SECONDS = 0.1  # per image, from which the time is part of the headline
PROMPT_LABELS = {"soft_prompt": "Nearest vocabulary tokens", "hard_prompt": "Optimized prompt"}  # by parametrization


def write_report(run_folder: Path) -> Path:
    """Write the page of a run folder and return its path."""
    write_page(run_folder)
    return run_folder / PAGE_FILE


def write_page(run_folder: Path) -> str:
    """Write the page of a run folder and return its first sentences."""
    if not run_folder.is_dir():
        raise UserError(f"{run_folder}: no such run folder; {RUN_FOLDER_HINT}")
    values = page_values(run_folder)
    write_atomic(run_folder / PAGE_FILE, jinja_environment().get_template("report.html.j2").render(values))
    return str(values["sentence"])


def page_values(run_folder: Path) -> dict[str, Any]:
    """What the page's template reads, by name."""
    folder = run_folder.resolve()
    task, (generator, _, classifier) = folder.parent.parent.name, folder.parent.name.partition("-")
    config = read_config(folder / "config.yaml")
    settings = read_settings(task, classifier, config)
    records, totals = read_first(folder / "results.jsonl", MAX_CARDS, task, headline_of(task).keys)
    if settings.schema.order is not None:
        records = sorted(records, key=settings.schema.order)
    cards = [make_card(folder, record, settings) for record in records]
    return {
        "title": settings.schema.title, "generator": generator, "classifier": classifier, "run_key": folder.name,
        "sentence": headline_text(task, totals, settings.names), "finished": totals.finished,
        "success_rate": SuccessRate(totals.successes, totals.evaluated) if totals.evaluated else None,
        "median_seconds": median(totals.seconds) if totals.seconds else None,
        "preparation_seconds": _longest_preparation(folder),
        "command": str(config.get("command") or ""), "config": _text(folder / "config.yaml"),
        "files": [name for name in LINKED_FILES if (folder / name).is_file()],
        "cards": cards,
        "sources": sorted({card.source for card in cards if card.source}),
        "targets": sorted({card.target for card in cards if card.target}),
        **_summary(current_summary(read_object(folder / "summary.json"), task), settings.schema.summary_labels),
        **_status(read_object(folder / "status.json")),
        **_manifest(renamed(read_object(folder / "manifest.json"), MANIFEST)),
    }  # fmt: skip


def headline_text(task: str, totals: Totals, names: Names) -> str:
    """The first sentences of a page: the finding, the time per image and the successes before the first step. Empty
    without finished problems."""
    finding = first_sentence(task, totals.facts, names)
    if not finding:
        return ""
    seconds = median(totals.seconds) if totals.seconds else 0.0
    time = f"; {duration(seconds)} per image" if seconds >= MIN_SECONDS else ""
    if not (early := totals.successes_at_start):
        return f"{finding}{time}."
    succeeds = "succeeds" if early == 1 else "succeed"
    return f"{finding}{time}. {early} of {totals.finished} {succeeds} before the first step, by prompt and noise alone."


def read_settings(task: str, classifier: str, config: Mapping[str, Any]) -> Settings:
    """What a run's configuration says about all of its results."""
    task_settings = _mapping(config, "task")
    second = _mapping(task_settings, "rival")
    names = Names(classifier, _network_name(second)) if second else Names(classifier)
    weights = _mapping(task_settings, "weights")
    numbers = {str(key): float(weight) for key, weight in weights.items() if isinstance(weight, (int, float))}
    prompt_label = PROMPT_LABELS.get(str(_mapping(config, "options").get("parametrization")), "Prompt")
    return Settings(task, result_schema(task), names, numbers, prompt_label)


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping below a key, empty if there is none."""
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def _network_name(part: Mapping[str, Any]) -> str:
    """The name of a classifier by its settings: its file, its model or its function."""
    values = (part.get(key) for key in ("path", "name", "target"))
    return next((str(value).rstrip("/").rpartition("/")[2] for value in values if value), Names.second)


@cache
def jinja_environment() -> Environment:
    """The environment of the page templates; an undefined variable is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": format_number, "duration": duration}
    return environment


def _summary(summary: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    return {"summary": plain_values(summary, labels), "tables": tables(summary, labels)}


def _status(status: Mapping[str, Any]) -> dict[str, Any]:
    state = str(status.get("state", ""))
    failures = [(str(f.get("name", "")), str(f.get("error", ""))) for f in status.get("failures") or []]
    return {
        "state": STATE_TEXTS.get(state, state), "reason": str(status.get("reason") or ""), "failures": failures,
        "failed": int(status.get("failed") or 0), "pending": int(status.get("pending") or 0),
    }  # fmt: skip


def _manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    total = manifest.get("total")
    return {
        "total": total,
        "beyond_limit": 0 if total is None else max(total - len(manifest.get("problems") or {}), 0),
        "untracked": [str(line) for line in manifest.get("untracked") or []],
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _longest_preparation(folder: Path) -> float | None:
    """Seconds of loading and of preparing the problems, of the process that took longest."""
    values = []
    for path in sorted(folder.glob("attempts/*.json")):
        with suppress(FileNotFoundError, DamagedFileError):  # a damaged attempt costs this number alone
            values.append(renamed(parse_object(read(path)), ATTEMPT).get("preparation_seconds"))
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
