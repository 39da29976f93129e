"""Figures of what attention and gradients show of a picture: `attention_maps`, `input_gradients`."""

from __future__ import annotations

from collections.abc import Sequence

from classifier_lens.runner.report.figures.drawing import Block, Layout, Panel
from classifier_lens.runner.results.reader import Record, RunResults

MAPS_PER_ROW = 7  # maps of words on a line at most


def attention_maps(runs: Sequence[RunResults]) -> Layout:
    """Per picture its reconstruction, the map of the class's words and the mask, below them every word's map (Fig. 12),
    with the share of each map on the object."""
    return Layout([Block(r["caption"], _attention(run, r)) for run in runs for r in run.records])


def _attention(run: RunResults, r: Record) -> list[list[Panel]]:
    picture = run.image_path(r, "original")
    first = [
        Panel("original", picture, f"object {r['area']:.2f}"),
        Panel("reconstruction", run.image_path(r, "best"), f"{r['psnr']:.1f} dB"),
        Panel("class", picture, f"on object {r['within_class']:.2f}", run.image_path(r, "class")),
        Panel("white is free", run.image_path(r, "mask")),
    ]
    maps = [
        Panel(word, picture, f"on object {share:.2f}", run.image_path(r, name))
        for word, (name, share) in zip(r["words"], r["within"].items(), strict=True)
    ]
    each = -(-len(maps) // -(-len(maps) // MAPS_PER_ROW))  # lines of the same length
    return [first, *(maps[i : i + each] for i in range(0, len(maps), each))]


def input_gradients(runs: Sequence[RunResults]) -> Layout:
    """Per picture the mask and the target's gradient under each augmentation (Fig. 13), with the share of it on the
    object and the target's probability."""
    return Layout([
        Block(f"{r['source']} → {r['target']}", [_gradients(run, r)]) for run in runs for r in run.records
    ])  # fmt: skip


def _gradients(run: RunResults, r: Record) -> list[Panel]:
    within = r.get("within", {})  # none where no object was looked for
    on_object = {name: f"on object {share:.2f}\n" for name, share in within.items()}
    panels = [
        Panel(name.replace("_", " "), run.image_path(r, f"gradient-{name}"), f"{on_object.get(name, '')}p {p:.2g}")
        for name, p in r["probability"].items()
    ]
    original = Panel("original", run.image_path(r, "original"), f"object {r['area']:.2f}" if within else "")
    return [original, *([Panel("white is free", run.image_path(r, "mask"))] if within else []), *panels]
