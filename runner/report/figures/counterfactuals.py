"""Figures of pictures that a classifier calls something else: `uvce`, `disagreement`."""

from __future__ import annotations

from collections.abc import Sequence

from classifier_lens.runner.report.figures.drawing import Block, Layout, Panel, escape_math
from classifier_lens.runner.results.reader import Record, RunResults, distinguishing_names, group_by
from classifier_lens.runner.types import UserError

DIRECTION_TITLES = {"over": "f up, g down", "under": "g up, f down"}


def disagreement(runs: Sequence[RunResults]) -> Layout:
    """Per drawn picture the start and, per direction, the result (Fig. 3 and 4), with the real picture nearest to it
    where some were looked for (Fig. 5)."""
    return Layout([
        Block(own[0]["target"], [_dispute(run, own)])
        for run in runs for own in group_by(run.records, "target", "picture")
    ])  # fmt: skip


def _dispute(run: RunResults, own: Sequence[Record]) -> list[Panel]:
    first = own[0]
    before = first["confidence_before"][first["target"]], first["rival_confidence_before"]
    panels = [Panel("start", run.image_path(first, "start"), "$p_f$ {:.2f}\n$p_g$ {:.2f}".format(*before))]
    for r in own:
        after = r["confidence_after"][r["target"]], r["rival_confidence_after"]
        caption = f"$p_f$ {before[0]:.2f} → {after[0]:.2f}\n$p_g$ {before[1]:.2f} → {after[1]:.2f}"
        panels.append(Panel(DIRECTION_TITLES[r["direction"]], run.image_path(r, "best"), caption))
        if "near-1" in r["images"]:
            alike = f"{r['near_same']} of {r['near_found']} real ones alike"
            panels.append(Panel("nearest real one", run.image_path(r, "near-1"), alike))
    return panels


def uvce(runs: Sequence[RunResults]) -> Layout:
    """A run's counterfactuals with what led to them (Fig. 6 to 8 and 18); of several runs only the counterfactuals."""
    return _compared(runs) if len(runs) > 1 else Layout([_counterfactual(runs[0], r) for r in runs[0].records])


def _counterfactual(run: RunResults, r: Record) -> Block:
    panels = [
        Panel("original", run.image_path(r, "original"), _source_and_target(r, "before")),
        Panel("start", run.image_path(r, "start"), _source_and_target(r, "start")),
        Panel("counterfactual", run.image_path(r, "best"), _source_and_target(r, "after")),
        Panel("difference", run.image_path(r, "difference")),
    ]
    if "mask" in r["images"]:
        panels.append(Panel("white may change", run.image_path(r, "mask")))
    return Block(f"{r['source']} → {r['target']}", [panels])


def _compared(runs: Sequence[RunResults]) -> Layout:
    """Original and every run's answer to it."""
    answers = [{(r["name"], r["source"], r["target"]): r for r in run.records} for run in runs]
    blocks = []
    for question in (q for q in answers[0] if all(q in other for other in answers)):
        first = answers[0][question]
        panels = [Panel("original", runs[0].image_path(first, "original"), _source_and_target(first, "before"))]
        for run, label, answer in zip(runs, distinguishing_names(runs, "DiG-IN"), answers, strict=True):
            r = answer[question]
            panels.append(Panel(label, run.image_path(r, "best"), _source_and_target(r, "after")))
        blocks.append(Block(f"{first['source']} → {first['target']}", [panels]))
    if not blocks:
        raise UserError(
            f"{runs[0].folder}, {runs[1].folder}: answered no question in common; give runs of one data set"
        )
    return Layout(blocks)


def _source_and_target(r: Record, when: str) -> str:
    """Both classes' confidences, a line each."""
    return "\n".join(f"{escape_math(name)} {r[f'confidence_{when}'][name]:.2f}" for name in (r["source"], r["target"]))
