"""A submission's runs at a glance: on the console while they last, and as tables and a page."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from classifier_lens.runner.cluster.job_status import STATES, Run, Submission
from classifier_lens.runner.files.atomic import write
from classifier_lens.runner.report.charts import number
from classifier_lens.runner.report.page import PAGE, environment
from classifier_lens.runner.report.tables import words

NEVER_TELLING = ("command", "environment", "name", "logger", "outputs", "cache", "device", "claim", "checkpoint")
UNTOLD = ("images", "history", "controls", "digest", "digests")  # of a result
PICTURES = 8  # of a run, on the page


def show(submission: Submission, queued: Mapping[str, str], problems: bool, console: Console) -> bool:
    """Print how the jobs and the runs fare, with `problems` each problem; returns whether anything failed."""
    jobs = {job: submission.state(job, queued) for job in submission.jobs}
    runs = submission.runs()
    table = Table("job", "state", title=Text(f"submission {submission.folder.name}"), title_justify="left")
    for job, state in jobs.items():
        table.add_row(Text(job), Text(state))
    console.print(table)
    title = Text(" ".join(submission.words) or "run.py")
    table = Table(Column("run", overflow="fold"), *STATES, title=title, title_justify="left")
    for run in runs:
        table.add_row(Text(run.name), *(str(run.count(state)) for state in STATES))
    console.print(table)
    for run in runs:
        for name, (state, why) in run.problems.items():
            if problems or state == "failed":
                console.print(
                    f"{run.name}  {name}  {state}{f': {why}' if why else ''}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
    return any(state.startswith("failed") for state in jobs.values()) or any(run.count("failed") for run in runs)


def collect(submission: Submission) -> Path:
    """Write runs.csv, problems.csv and a page over all runs into the submission's folder; returns the page's path."""
    runs = submission.runs()
    settings = differing([run.config for run in runs])
    lines = [
        {"run": run.name, **own, **{state: run.count(state) for state in STATES}, **dict(leaves(run.summary))}
        for run, own in zip(runs, settings, strict=True)
    ]
    _write_csv(submission.folder / "runs.csv", lines)
    answers = [
        {"run": run.name, **own, **_plain(record)}
        for run, own in zip(runs, settings, strict=True)
        for record in run.records
    ]
    _write_csv(submission.folder / "problems.csv", answers)
    columns = list(dict.fromkeys(key for line in lines for key in line if key != "run"))
    page = environment().get_template("overview.html.j2").render(
        submission=submission,
        columns=[words(column) for column in columns],
        rows=[(_address(submission, run), run.name, [_cell(line.get(c)) for c in columns], _pictures(submission, run))
              for run, line in zip(runs, lines, strict=True)],
    )  # fmt: skip
    write(submission.folder / PAGE, page)
    return submission.folder / PAGE


def differing(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each configuration the settings in which not all agree: what tells the runs of a sweep apart."""
    flat = [dict(leaves({k: v for k, v in config.items() if k not in NEVER_TELLING})) for config in configs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    told = [key for key in keys if len({repr(settings.get(key)) for settings in flat}) > 1]
    return [{key: settings.get(key) for key in told} for settings in flat]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers, texts and truth values at any depth of mappings, under dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, (bool, int, float, str)):
            yield f"{prefix}{key}", value


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A result's values, without its pictures and its history."""
    return dict(leaves({key: value for key, value in record.items() if key not in UNTOLD}))


def _write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for line in lines for key in line))
    file = StringIO(newline="")
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(lines)
    write(path, file.getvalue())


def _cell(value: Any) -> str:
    return "–" if value is None else number(value)


def _address(submission: Submission, run: Run) -> str:
    """Of a run's own page, seen from the submission's."""
    return quote(Path(os.path.relpath(run.folder / PAGE, submission.folder)).as_posix())


def _pictures(submission: Submission, run: Run) -> list[tuple[str, str]]:
    """Name and address of the first results' pictures."""
    shown = [(str(record["name"]), run.folder / record["images"]["best"]) for record in run.records[:PICTURES]]
    return [(name, quote(Path(os.path.relpath(path, submission.folder)).as_posix())) for name, path in shown]
