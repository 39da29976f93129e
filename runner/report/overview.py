"""Overview of a submission's runs: on the console while they run, and as tables and a page."""

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

from classifier_lens.runner.cluster.job_status import STATES, RunStatus, Submission
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.report.labels import setting_label
from classifier_lens.runner.report.page import PAGE_FILE, jinja_environment
from classifier_lens.runner.report.result_keys import current_record, current_summary
from classifier_lens.runner.report.sweep_matrix import sweep_matrices
from classifier_lens.runner.report.wording import format_number
from classifier_lens.tasks.result_schemas import result_schema

IGNORED_SETTINGS = (
    *("command", "environment", "name", "options", "logger", "outputs", "cache", "device", "lease", "checkpoint"),
)
OMITTED_KEYS = ("images", "history", "controls_file", "digest", "file_digests")  # of a result


def print_status(submission: Submission, queued: Mapping[str, str], problems: bool, console: Console) -> bool:
    """Print the states of jobs and runs, with `problems` those of every problem; returns whether anything failed."""
    jobs = {job: submission.job_state(job, queued) for job in submission.jobs}
    runs = submission.runs()
    table = Table("job", "state", title=Text(f"submission {submission.folder.name}"), title_justify="left")
    for job, state in jobs.items():
        table.add_row(Text(job), Text(state))
    console.print(table)
    title = Text(" ".join(submission.overrides) or "run.py")
    table = Table(Column("run", overflow="fold"), *STATES, title=title, title_justify="left")
    for run in runs:
        table.add_row(Text(run.name), *(str(run.count(state)) for state in STATES))
    console.print(table)
    for run in runs:
        for name, (state, reason) in run.problem_states.items():
            if problems or state == "failed":
                console.print(
                    f"{run.name}  {name}  {state}{f': {reason}' if reason else ''}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
    return any(state.startswith("failed") for state in jobs.values()) or any(run.count("failed") for run in runs)


def write_overview(submission: Submission) -> Path:
    """Write runs.csv, problems.csv and a page over all runs into the submission's folder; returns the page's path."""
    runs = submission.runs()
    settings = differing_settings([run.config for run in runs])
    summaries = [dict(flatten(current_summary(run.summary, _task(run)))) for run in runs]
    lines = [
        {"run": run.name, **run_settings, **{state: run.count(state) for state in STATES}, **summary}
        for run, run_settings, summary in zip(runs, settings, summaries, strict=True)
    ]
    _write_csv(submission.folder / "runs.csv", lines)
    results = [
        {"run": run.name, **run_settings, **_plain(current_record(record, _task(run)))}
        for run, run_settings in zip(runs, settings, strict=True)
        for record in run.records
    ]
    _write_csv(submission.folder / "problems.csv", results)
    columns = list(dict.fromkeys(key for line in lines for key in line if key != "run"))
    numeric = [all(isinstance(line.get(c), (int, float, type(None))) for line in lines) for c in columns]
    labels = {key: label for run in runs for key, label in result_schema(_task(run)).summary_labels.items()}
    matrices, left_out = sweep_matrices(runs, settings, submission.folder)
    page = jinja_environment().get_template("overview.html.j2").render(
        submission=submission,
        sentence=_sentence(runs),
        columns=[(setting_label(c, labels), is_numeric) for c, is_numeric in zip(columns, numeric, strict=True)],
        rows=[(_address(submission, run), run.name, [format_number(line.get(c)) for c in columns])
              for run, line in zip(runs, lines, strict=True)],
        matrices=matrices,
        left_out=left_out,
    )  # fmt: skip
    write_durable(submission.folder / PAGE_FILE, page)
    return submission.folder / PAGE_FILE


def _task(run: RunStatus) -> str:
    return run.folder.parts[-3]


def _sentence(runs: Sequence[RunStatus]) -> str:
    """How many problems of how many runs are finished, and how many succeed."""
    records = [record for run in runs for record in run.records]
    successes = [record["success"] for record in records if isinstance(record.get("success"), bool)]
    failed = sum(run.count("failed") for run in runs)
    parts = [f"{len(records)} problems of {len(runs)} runs are finished"]
    parts += [f"{sum(successes)} of {len(successes)} succeed"] if successes else []
    parts += [f"{failed} failed"] if failed else []
    return "; ".join(parts) + "."


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each configuration the settings that are not equal in all: what distinguishes the runs of a sweep."""
    flat = [dict(flatten({k: v for k, v in config.items() if k not in IGNORED_SETTINGS})) for config in configs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    differing_keys = [key for key in keys if len({repr(settings.get(key)) for settings in flat}) > 1]
    return [{key: settings.get(key) for key in differing_keys} for settings in flat]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers, texts and truth values at any depth of mappings, under dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif value is None or isinstance(value, (bool, int, float, str)):
            yield f"{prefix}{key}", value


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """A result's values, without its images and its history."""
    return dict(flatten({key: value for key, value in record.items() if key not in OMITTED_KEYS}))


def _write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for line in lines for key in line))
    file = StringIO(newline="")
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(lines)
    write_durable(path, file.getvalue())


def _address(submission: Submission, run: RunStatus) -> str:
    """The address of a run's page, relative to the submission's page."""
    return quote(Path(os.path.relpath(run.folder / PAGE_FILE, submission.folder)).as_posix())
