"""Figures of changed predictions: `uvce`, `disagreement`."""

from __future__ import annotations

from collections.abc import Sequence

from classifier_lens.runner.report.figures.drawing import Block, Layout, Panel, escape_math
from classifier_lens.runner.result_schema import DIFFERENCE, MASK, ORIGINAL, RESULT, START, Record
from classifier_lens.runner.results.reader import RunResults, distinguishing_names, group_by
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.analysis.retrieval import IMAGE_NEIGHBORS

DIRECTION_TITLES = {"over": "2: f up, g down", "under": "3: g up, f down"}


def disagreement(runs: Sequence[RunResults]) -> Layout:
    """Per start image the result of each direction (DiG-IN, Fig. 3 and 4), with the nearest real image if real images
    were searched (Fig. 5)."""
    return Layout([
        Block(records[0]["target"], [_disagreement(run, records)])
        for run in runs for records in group_by(run.records, "target", "image_name")
    ])  # fmt: skip


def _disagreement(run: RunResults, records: Sequence[Record]) -> list[Panel]:
    first = records[0]
    before = first["confidence_before"][first["target"]], first["second_confidence_before"]
    panels = [Panel("1: start", run.image_path(first, START), "$p_f$ {:.2f}\n$p_g$ {:.2f}".format(*before))]
    for r in records:
        after = r["confidence_after"][r["target"]], r["second_confidence_after"]
        caption = f"$p_f$ {before[0]:.2f} → {after[0]:.2f}\n$p_g$ {before[1]:.2f} → {after[1]:.2f}"
        panels.append(Panel(DIRECTION_TITLES[r["direction"]], run.image_path(r, RESULT), caption))
        if (nearest := IMAGE_NEIGHBORS.image(1)).key in r["images"]:
            agreement = f"{r['image_neighbors_disagreeing']} of {r['image_neighbors']} nearest agree"
            panels.append(Panel("4: nearest real image", run.image_path(r, nearest), agreement))
    return panels


def uvce(runs: Sequence[RunResults]) -> Layout:
    """The counterfactuals of one run with their starts (DiG-IN, Fig. 6 to 8 and 18); of several runs the
    counterfactuals alone, side by side."""
    return _compared(runs) if len(runs) > 1 else Layout([_counterfactual(runs[0], r) for r in runs[0].records])


def _counterfactual(run: RunResults, r: Record) -> Block:
    panels = [
        Panel("1: original", run.image_path(r, ORIGINAL), _source_and_target(r, "before")),
        Panel("2: start", run.image_path(r, START), _source_and_target(r, "start")),
        Panel("3: counterfactual", run.image_path(r, RESULT), _source_and_target(r, "after")),
        Panel("4: difference of 1 and 3", run.image_path(r, DIFFERENCE)),
    ]
    if MASK.key in r["images"]:
        panels.append(Panel("5: editable region", run.image_path(r, MASK), "white: editable"))
    return Block(f"{r['source']} → {r['target']}", [panels])


def _compared(runs: Sequence[RunResults]) -> Layout:
    """Per problem that all runs solved the original and the result of each run."""
    solved = [{(r["name"], r["source"], r["target"]): r for r in run.records} for run in runs]
    blocks = []
    for problem in (key for key in solved[0] if all(key in records for records in solved)):
        first = solved[0][problem]
        panels = [Panel("original", runs[0].image_path(first, ORIGINAL), _source_and_target(first, "before"))]
        for run, label, records in zip(runs, distinguishing_names(runs, "DiG-IN"), solved, strict=True):
            r = records[problem]
            panels.append(Panel(label, run.image_path(r, RESULT), _source_and_target(r, "after")))
        blocks.append(Block(f"{first['source']} → {first['target']}", [panels]))
    if not blocks:
        raise UserError(
            f"{runs[0].folder}, {runs[1].folder}: no problem was solved by all runs, so there is nothing to compare; "
            "give runs on the same images"
        )
    return Layout(blocks)


def _source_and_target(r: Record, when: str) -> str:
    """The confidence in the source and in the target, a line each."""
    return "\n".join(f"{escape_math(name)} {r[f'confidence_{when}'][name]:.2f}" for name in (r["source"], r["target"]))
