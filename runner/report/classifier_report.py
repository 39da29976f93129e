"""The page about one classifier: its shortcuts, what was not found, and what could not be tested; built from the run
folders of a report alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from classifier_lens.runner.files.atomic import DamagedFileError, make_folder, read, write_atomic
from classifier_lens.runner.report.page import PAGE_FILE, jinja_environment
from classifier_lens.runner.report.report_findings import (
    Evidence,
    ReportRun,
    classes_without,
    control_findings,
    counterfactual_findings,
    marks_without,
    overlay_findings,
    overlay_sentence,
    phrase_findings,
    report_sentence,
    tested_phrases,
    untested_phrases,
)
from classifier_lens.runner.results.integrity import parse_object
from classifier_lens.runner.results.reader import read_run
from classifier_lens.runner.types import UserError

FINDINGS_FILE = "findings.json"
TASKS = {
    "concept_effect": "Concept effects",
    "spurious_audit": "Audit of the most important features",
    "disagreement": "Disagreement with the reference network",
    "uvce": "Counterfactuals",
}


def read_report_run(task: str, words: Sequence[str], folder: Path | None, problem: str, page_folder: Path) -> ReportRun:
    """A run of a report with its results. folder: of the run, None if it has none; problem: why."""
    if folder is None:
        return ReportRun(task, words, problem=problem)
    try:
        results = read_run(folder)
    except UserError as error:
        return ReportRun(task, words, problem=problem or str(error))
    page = quote(Path(os.path.relpath(folder / PAGE_FILE, page_folder)).as_posix())
    return ReportRun(task, words, results, problem, _seconds(folder), page)


def write_report_page(evidence: Evidence, command: str, only_classes: Sequence[str] | None) -> Path:
    """Write the page of a report, and its findings as JSON; returns the path of the page. command: of the report;
    only_classes: those that the user chose, None for all."""
    make_folder(evidence.folder)
    page = (
        jinja_environment()
        .get_template("classifier_report.html.j2")
        .render(page_values(evidence, command, only_classes))
    )
    write_atomic(evidence.folder / FINDINGS_FILE, json.dumps(_plain_findings(evidence), indent=1))
    write_atomic(evidence.folder / PAGE_FILE, page)
    return evidence.folder / PAGE_FILE


def page_values(evidence: Evidence, command: str, only_classes: Sequence[str] | None) -> dict[str, Any]:
    """The variables of the page's template."""
    effects = evidence.runs["concept_effect"]
    threshold = _threshold(effects)
    shortcuts = phrase_findings(evidence, threshold)
    sentence = report_sentence(evidence, shortcuts, threshold)
    overlays = overlay_sentence(evidence)
    runs = [replace(run, task=TASKS[run.task]) for run in evidence.runs.values()]
    return {
        "classifier": evidence.classifier, "command": command, "threshold": threshold, "sentence": sentence,
        "overlay_sentence": "" if overlays == sentence else overlays,
        "phrases": tested_phrases(evidence), "shortcuts": shortcuts,
        "marks": overlay_findings(evidence, is_damage=False), "num_marks": len(evidence.overlays(is_damage=False)),
        "damages": overlay_findings(evidence, is_damage=True), "num_damages": len(evidence.overlays(is_damage=True)),
        "controls": control_findings(evidence), "marks_without": marks_without(evidence),
        "counterfactuals": counterfactual_findings(evidence),
        "without": classes_without(evidence), "untested": untested_phrases(evidence), "only_classes": only_classes,
        "runs": runs, "missing": [run for run in runs if run.problem and not run.is_left_out],
        "left_out": [run for run in runs if run.is_left_out],
        "seconds": sum(run.seconds or 0.0 for run in runs),
    }  # fmt: skip


def _threshold(run: ReportRun) -> float:
    task = {} if run.results is None else run.results.config.get("task")
    value = task.get("effect_threshold") if isinstance(task, dict) else None
    return float(value) if isinstance(value, (int, float)) else 0.0


def _plain_findings(evidence: Evidence) -> list[dict[str, Any]]:
    """The shortcuts for programs, as the task's summary has them, and of which kind each is: a phrase or a mark."""
    results = evidence.runs["concept_effect"].results
    rows = [] if results is None else results.summary().get("shortcuts") or []
    return [{"kind": "phrase" if "effect" in row else "mark", **row} for row in rows]


def _seconds(folder: Path) -> float:
    """Seconds of all starts of a run."""
    total = 0.0
    for path in folder.glob("attempts/*.json"):
        with suppress(FileNotFoundError, DamagedFileError, KeyError, TypeError):  # it costs this number alone
            attempt = parse_object(read(path))
            total += attempt["updated_at"] - attempt["started_at"]
    return total
