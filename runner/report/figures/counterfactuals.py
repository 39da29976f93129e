"""Figures of pictures that a classifier calls something else: `uvce`, `disagreement`."""

from __future__ import annotations

from collections.abc import Sequence

from classifier_lens.runner.report.figures.drawing import Block, Layout, Panel, escaped
from classifier_lens.runner.results.reader import Record, Run, groups, told_apart
from classifier_lens.runner.types import UserError

DISPUTES = {"over": "f up, g down", "under": "g up, f down"}


def disagreement(runs: Sequence[Run]) -> Layout:
    """Per drawn picture the start and, per direction, the result (Fig. 3 and 4), with the real picture nearest to it
    where some were looked for (Fig. 5)."""
    return Layout([
        Block(own[0]["target"], [_dispute(run, own)])
        for run in runs for own in groups(run.records, "target", "picture")
    ])  # fmt: skip


def _dispute(run: Run, own: Sequence[Record]) -> list[Panel]:
    first = own[0]
    before = first["confidence_before"][first["target"]], first["rival_confidence_before"]
    panels = [Panel("start", run.picture(first, "start"), "$p_f$ {:.2f}\n$p_g$ {:.2f}".format(*before))]
    for r in own:
        after = r["confidence_after"][r["target"]], r["rival_confidence_after"]
        caption = f"$p_f$ {before[0]:.2f} → {after[0]:.2f}\n$p_g$ {before[1]:.2f} → {after[1]:.2f}"
        panels.append(Panel(DISPUTES[r["direction"]], run.picture(r, "best"), caption))
        if "near-1" in r["images"]:
            alike = f"{r['near_same']} of {r['near_found']} real ones alike"
            panels.append(Panel("nearest real one", run.picture(r, "near-1"), alike))
    return panels


def uvce(runs: Sequence[Run]) -> Layout:
    """A run's counterfactuals with what led to them (Fig. 6 to 8 and 18); of several runs only the counterfactuals."""
    return _compared(runs) if len(runs) > 1 else Layout([_flip(runs[0], r) for r in runs[0].records])


def _flip(run: Run, r: Record) -> Block:
    panels = [
        Panel("original", run.picture(r, "original"), _source_and_target(r, "before")),
        Panel("start", run.picture(r, "start"), _source_and_target(r, "start")),
        Panel("counterfactual", run.picture(r, "best"), _source_and_target(r, "after")),
        Panel("difference", run.picture(r, "difference")),
    ]
    if "mask" in r["images"]:
        panels.append(Panel("white may change", run.picture(r, "mask")))
    return Block(f"{r['source']} → {r['target']}", [panels])


def _compared(runs: Sequence[Run]) -> Layout:
    """Original and every run's answer to it."""
    answers = [{(r["name"], r["source"], r["target"]): r for r in run.records} for run in runs]
    blocks = []
    for question in (q for q in answers[0] if all(q in other for other in answers)):
        first = answers[0][question]
        panels = [Panel("original", runs[0].picture(first, "original"), _source_and_target(first, "before"))]
        for run, label, answer in zip(runs, told_apart(runs, "DiG-IN"), answers, strict=True):
            r = answer[question]
            panels.append(Panel(label, run.picture(r, "best"), _source_and_target(r, "after")))
        blocks.append(Block(f"{first['source']} → {first['target']}", [panels]))
    if not blocks:
        raise UserError(
            f"{runs[0].folder}, {runs[1].folder}: answered no question in common; give runs of one data set"
        )
    return Layout(blocks)


def _source_and_target(r: Record, when: str) -> str:
    """Both classes' confidences, a line each."""
    return "\n".join(f"{escaped(name)} {r[f'confidence_{when}'][name]:.2f}" for name in (r["source"], r["target"]))
