"""Figures of concept effects: `concept_effect`."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from classifier_lens.runner.report.figures.drawing import Block, Layout, Panel
from classifier_lens.runner.result_schema import ORIGINAL, RESULT, Record
from classifier_lens.runner.results.reader import RunResults
from classifier_lens.tasks.interventions.effect_records import PHRASES


def concept_effect(runs: Sequence[RunResults]) -> Layout:
    """Per result a row of images without the concept and one with it, with the effect in the title."""
    return Layout([Block(_title(r), _rows(run, r)) for run in runs for r in run.records])


def _title(r: Record) -> str:
    first = r["effects"][0]
    if r["kind"] == PHRASES:
        return f"{r['target']}: “{first['concept']}” {first['effect']:+.2f}" + ("" if r["found"] else ", no shortcut")
    return f"{r['overlay']}: {first['class_name']} {first['log_odds_change']:+.2f}"


def _rows(run: RunResults, r: Record) -> list[list[Panel]]:
    rows = []
    for number, (heading, field) in enumerate((("without", ORIGINAL), ("with", RESULT)), start=1):
        path = run.image_path(r, field)
        with Image.open(path, formats=["PNG"]) as image:
            count = (image.width - 1) // (image.height - 1)  # squares with a line of one pixel around each
        rows.append([Panel(f"{number}: {heading}" if i == 0 else "", path, part=i) for i in range(count)])
    return rows
