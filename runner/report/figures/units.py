"""Figures of units and components and of what excites them: `neuron_vis`, `neuron_cf`, `npca_cf`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from classifier_lens.runner.report.figures.drawing import Block, Layout, Matrix, Panel, escape_math
from classifier_lens.runner.results.reader import Record, RunResults, group_by

DIRECTION_TITLES = {"max": "maximised", "min": "minimised"}


def neuron_vis(runs: Sequence[RunResults]) -> Layout:
    """Per unit the training picture that excites it most, the best word's and the results (Fig. 29 to 31), and how far
    the results excite their own unit and the others (Fig. 9)."""
    units = [(run, own) for run in runs for own in group_by(run.records, "unit")]
    names = list(dict.fromkeys(own[0]["unit"] for _, own in units))
    rows = [[_mean_activation(own, name) for name in names] for _, own in units]
    title = "mean activation of every unit (column) in the results of each (row)"
    matrix = Matrix(title, [own[0]["unit"] for _, own in units], names, rows) if len(names) > 1 else None
    return Layout([Block(f"unit {own[0]['unit']}", [_unit(run, own)]) for run, own in units], matrix)


def _mean_activation(records: Sequence[Record], unit: str) -> float:
    """NaN where the unit is of another module, or of another run."""
    values = [r["activations"][unit] for r in records if unit in r["activations"]]
    return fmean(values) if values else math.nan


def _unit(run: RunResults, own: Sequence[Record]) -> list[Panel]:
    first = own[0]
    return [
        Panel("best training picture", run.image_path(first, "training"), f"activation {first['training_max']:.2f}"),
        *([Panel("best word", run.image_path(first, "worded"), _words(first))] if "word" in first else []),
        *(Panel("result", run.image_path(r, "best"), f"activation {r['activation_after']:.2f}") for r in own),
    ]


def _words(record: Record) -> str:
    mean, highest = record["word_means"][record["word"]], record["word_max"]
    return f"“{escape_math(record['word'])}”\nmean {mean:.2f}\nany word ≤ {highest:.2f}"


def neuron_cf(runs: Sequence[RunResults]) -> Layout:
    """Per picture and unit the original, what maximises and minimises the unit and the feature attack (Fig. 10), below
    them where the unit looks, with the share of it outside the object, and the mask (Fig. 34)."""
    return Layout([
        Block(f"{own[0]['source']}, unit {own[0]['unit']}", [line for line in _push(run, own) if line])
        for run in runs for own in group_by(run.records, "picture", "unit")
    ])  # fmt: skip


def _push(run: RunResults, own: Sequence[Record]) -> tuple[list[Panel], list[Panel]]:
    first = own[0]
    attacked = (
        f"activation {first['activation_attack']:.2f}\n{escape_math(first['source'])} {first['confidence_attack']:.2f}"
    )
    attack = Panel("feature attack", run.image_path(first, "attack"), attacked)
    pictures = [*_steered(run, own, "activation", "activation"), attack]
    shown = [("before", first, run.start_image_path(first)), *(("after", r, run.image_path(r, "best")) for r in own)]
    cams = [
        Panel(f"HiResCAM, {when}", picture, _outside(r, when), run.image_path(r, f"cam-{when}"))
        for when, r, picture in shown if f"cam-{when}" in r["images"]
    ]  # fmt: skip
    return pictures, cams + (
        [Panel("white may change", run.image_path(first, "mask"))] if "mask" in first["images"] else []
    )


def _outside(r: Record, when: str) -> str:
    share = r.get(f"cam_outside_{when}")
    return "" if share is None else f"outside {share:.2f}"


def npca_cf(runs: Sequence[RunResults]) -> Layout:
    """Per picture and component what it began with and what maximises and minimises the component (Fig. 11 and 35)."""
    return Layout([
        Block(f"{own[0]['source']}, component {own[0]['component']}", [_steered(run, own, "contribution", "α")])
        for run in runs for own in group_by(run.records, "picture", "source", "component")
    ])  # fmt: skip


def _steered(run: RunResults, own: Sequence[Record], key: str, name: str) -> list[Panel]:
    """The start and each direction's result; captions: what was steered and the confidence of its class."""
    first = own[0]
    heading = "original" if "original" in first["images"] else "start"
    label = escape_math(first["source"])

    def caption(r: Record, when: str) -> str:
        return f"{name} {r[f'{key}_{when}']:.2f}\n{label} {r[f'confidence_{when}'][r['source']]:.2f}"

    results = (Panel(DIRECTION_TITLES[r["direction"]], run.image_path(r, "best"), caption(r, "after")) for r in own)
    return [Panel(heading, run.start_image_path(first), caption(first, "before")), *results]
