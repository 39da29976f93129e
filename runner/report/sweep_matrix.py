"""Results of a sweep side by side: for each original image a matrix of classifiers and targets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from classifier_lens.runner.cluster.job_status import RunStatus
from classifier_lens.runner.report.cards import Settings
from classifier_lens.runner.report.findings import finding, has_original
from classifier_lens.runner.report.page import read_settings
from classifier_lens.runner.report.result_keys import current_record
from classifier_lens.runner.result_schema import ORIGINAL, RESULT

MAX_MATRICES = 12  # original images on the page
MAX_LABEL_SETTINGS = 3  # settings that a row's label names
SHOWN_SETTINGS = ("classifier", "generator", "sampler", "domain", "task.target")  # folder names and columns show them
NO_TARGET = "Result"


@dataclass(frozen=True)
class Cell:
    """An image with what it is. success: None where nothing can succeed."""

    href: str
    alt: str
    text: str
    success: bool | None = None


@dataclass(frozen=True)
class Row:
    """The results of one run, or of runs that differ in their target alone. original: with this classifier's
    prediction; cells: for each column, one or more images."""

    label: str
    original: Cell | None
    cells: list[list[Cell]]


@dataclass(frozen=True)
class Matrix:
    """Results for one original image, or those of generated images."""

    title: str
    columns: list[str]
    rows: list[Row]

    @property
    def has_originals(self) -> bool:
        return any(row.original for row in self.rows)


@dataclass(frozen=True)
class _Result:
    run: RunStatus
    label: str
    record: Mapping[str, Any]
    settings: Settings


def sweep_matrices(
    runs: Sequence[RunStatus], differing: Sequence[Mapping[str, Any]], base: Path
) -> tuple[list[Matrix], int]:
    """The first matrices, and how many are left out. differing: of each run the settings that distinguish it; base: the
    folder of the page, to which addresses are relative."""
    groups: dict[str, list[_Result]] = {}
    for run, label in zip(runs, row_labels(runs, differing), strict=True):
        task, folder = run.folder.parts[-3:-1]
        settings = read_settings(task, folder.partition("-")[2], run.config)
        for line in run.records:
            record = current_record(line, task)
            title = str(record.get("image_name", "")) if has_original(record) else ""
            groups.setdefault(title, []).append(_Result(run, label, record, settings))
    matrices = [_matrix(title, results, base) for title, results in list(groups.items())[:MAX_MATRICES]]
    return matrices, max(len(groups) - MAX_MATRICES, 0)


def row_labels(runs: Sequence[RunStatus], differing: Sequence[Mapping[str, Any]]) -> list[str]:
    """The classifier of each run, its generator where runs differ in that, and other settings in which they differ."""
    parts = [run.folder.parts[-2].partition("-") for run in runs]
    has_generators = len({generator for generator, _, _ in parts}) > 1
    labels = []
    for (generator, _, classifier), settings in zip(parts, differing, strict=True):
        others = [f"{key}={value}" for key, value in settings.items() if not key.startswith(SHOWN_SETTINGS)]
        names = [classifier, *([generator] if has_generators else []), *others[:MAX_LABEL_SETTINGS]]
        labels.append(", ".join(names))
    return labels


def _matrix(title: str, results: Sequence[_Result], base: Path) -> Matrix:
    columns = list(dict.fromkeys(_column(result) for result in results))
    rows = [
        _row(label, [result for result in results if result.label == label], columns, base)
        for label in dict.fromkeys(result.label for result in results)
    ]
    return Matrix(title or "Generated images", columns, rows)


def _column(result: _Result) -> str:
    return str(result.record.get("target") or NO_TARGET)


def _row(label: str, results: Sequence[_Result], columns: Sequence[str], base: Path) -> Row:
    cells = [[_cell(result, base) for result in results if _column(result) == column] for column in columns]
    return Row(label, _original(results[0], base), cells)


def _original(result: _Result, base: Path) -> Cell | None:
    record = result.record
    path = record["images"].get(ORIGINAL.key)
    if path is None:
        return None
    label = record.get("predicted_before")
    confidence = (record.get("confidence_before") or {}).get(label)
    text = "" if label is None else f"{label} {confidence:.2f}" if isinstance(confidence, float) else str(label)
    return Cell(_address(result, path, base), f"Original image {record.get('image_name', '')}: {text}", text)


def _cell(result: _Result, base: Path) -> Cell:
    record, success = result.record, result.record.get("success")
    text = finding(result.settings.task, record, result.settings.names).short
    alt = f"Result of {record['name']}, {result.label}: {text}"
    return Cell(
        _address(result, record["images"][RESULT.key], base), alt, text, success if isinstance(success, bool) else None
    )


def _address(result: _Result, path: str, base: Path) -> str:
    return quote(Path(os.path.relpath(result.run.folder / path, base)).as_posix())
