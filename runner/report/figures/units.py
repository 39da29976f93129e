"""Figures of units and components: `neuron_vis`, `neuron_cf`, `npca_cf`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from classifier_lens.runner.report.figures.drawing import Block, Layout, Matrix, Panel, escape_math
from classifier_lens.runner.result_schema import MASK, ORIGINAL, RESULT, Record
from classifier_lens.runner.results.reader import RunResults, group_by
from classifier_lens.tasks.neuron_cf import ATTACKED
from classifier_lens.tasks.neuron_vis import BEST_WORD_IMAGE, TRAINING_IMAGE
from classifier_lens.tasks.units.hirescam import CAM_AFTER, CAM_BEFORE

DIRECTION_TITLES = {"max": "2: maximized", "min": "3: minimized"}


def neuron_vis(runs: Sequence[RunResults]) -> Layout:
    """Per unit the training image with the highest activation, the image of the best word and the results (Fig. 29 to
    31), then the activation of every unit on the results of each (Fig. 9)."""
    units = [(run, records) for run in runs for records in group_by(run.records, "unit")]
    names = list(dict.fromkeys(records[0]["unit"] for _, records in units))
    rows = [[_mean_activation(records, name) for name in names] for _, records in units]
    title = "mean activation of every unit (column) on the results of each (row)"
    matrix = Matrix(title, [records[0]["unit"] for _, records in units], names, rows) if len(names) > 1 else None
    return Layout([Block(f"unit {records[0]['unit']}", [_unit(run, records)]) for run, records in units], matrix)


def _mean_activation(records: Sequence[Record], unit: str) -> float:
    """NaN if the unit belongs to another module or to another run."""
    values = [r["activations"][unit] for r in records if unit in r["activations"]]
    return fmean(values) if values else math.nan


def _unit(run: RunResults, records: Sequence[Record]) -> list[Panel]:
    first = records[0]
    words = []
    if "best_word" in first:
        words.append(Panel("2: best word", run.image_path(first, BEST_WORD_IMAGE), _words(first)))
    return [
        Panel(
            "1: best training image", run.image_path(first, TRAINING_IMAGE), f"activation {first['training_max']:.2f}"
        ),
        *words,
        *(Panel("3: result", run.image_path(r, RESULT), f"activation {r['activation_after']:.2f}") for r in records),
    ]


def _words(record: Record) -> str:
    mean, highest = record["word_means"][record["best_word"]], record["word_max"]
    return f"“{escape_math(record['best_word'])}”\nmean {mean:.2f}\nany word ≤ {highest:.2f}"


def neuron_cf(runs: Sequence[RunResults]) -> Layout:
    """Per image and unit the original, the results of both directions and the feature attack (Fig. 10), then the
    HiResCAM maps of the unit, with their share outside the object, and the mask (Fig. 34)."""
    return Layout([
        Block(f"{records[0]['source']}, unit {records[0]['unit']}", [row for row in _unit_rows(run, records) if row])
        for run in runs for records in group_by(run.records, "image_name", "unit")
    ])  # fmt: skip


def _unit_rows(run: RunResults, records: Sequence[Record]) -> tuple[list[Panel], list[Panel]]:
    first = records[0]
    caption = (
        f"activation {first['activation_attack']:.2f}\n{escape_math(first['source'])} {first['confidence_attack']:.2f}"
    )
    attack = Panel("4: feature attack", run.image_path(first, ATTACKED), caption)
    images = [*_both_directions(run, records, "activation", "activation"), attack]
    explained = [("5", "before", first, run.start_image_path(first), CAM_BEFORE)]
    explained += [("6", "after", r, run.image_path(r, RESULT), CAM_AFTER) for r in records]
    maps = [
        Panel(f"{number}: HiResCAM {when}", image, _outside(r, when), run.image_path(r, cam))
        for number, when, r, image, cam in explained if cam.key in r["images"]
    ]  # fmt: skip
    if MASK.key in first["images"]:
        maps.append(Panel("7: editable region", run.image_path(first, MASK), "white: editable"))
    return images, maps


def _outside(r: Record, when: str) -> str:
    share = r.get(f"cam_share_outside_{when}")
    return "" if share is None else f"outside object {share:.2f}"


def npca_cf(runs: Sequence[RunResults]) -> Layout:
    """Per image and component the start and the results of both directions (Fig. 11 and 35)."""
    return Layout([
        Block(
            f"{records[0]['source']}, component {records[0]['component']}",
            [_both_directions(run, records, "contribution", "α")],
        )
        for run in runs for records in group_by(run.records, "image_name", "source", "component")
    ])  # fmt: skip


def _both_directions(run: RunResults, records: Sequence[Record], key: str, name: str) -> list[Panel]:
    """The start and the result of each direction, with the changed quantity and the confidence in the class."""
    first = records[0]
    heading = "original" if ORIGINAL.key in first["images"] else "start"
    label = escape_math(first["source"])

    def caption(r: Record, when: str) -> str:
        return f"{name} {r[f'{key}_{when}']:.2f}\n{label} {r[f'confidence_{when}'][r['source']]:.2f}"

    results = (Panel(DIRECTION_TITLES[r["direction"]], run.image_path(r, RESULT), caption(r, "after")) for r in records)
    return [Panel(f"1: {heading}", run.start_image_path(first), caption(first, "before")), *results]
