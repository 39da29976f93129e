"""Figures of attention maps and of input gradients: `attention_maps`, `input_gradients`."""

from __future__ import annotations

from collections.abc import Sequence

from classifier_lens.runner.report.figures.drawing import Block, Layout, Panel
from classifier_lens.runner.result_schema import MASK, ORIGINAL, RESULT, Record
from classifier_lens.runner.results.reader import RunResults
from classifier_lens.tasks.attention_maps import CLASS_NAME_MAP, word_maps
from classifier_lens.tasks.input_gradients import gradient_field


def attention_maps(runs: Sequence[RunResults]) -> Layout:
    """Per image the reconstruction, the map of the class words and the mask, then the map of every word, with the share
    of each map on the object (DiG-IN, Fig. 12)."""
    return Layout([Block(r["caption"], _attention(run, r)) for run in runs for r in run.records])


def _attention(run: RunResults, r: Record) -> list[list[Panel]]:
    original = run.image_path(r, ORIGINAL)
    first = [
        Panel("1: original", original, f"object {r['object_area']:.2f}"),
        Panel("2: reconstruction", run.image_path(r, RESULT), f"{r['psnr']:.1f} dB"),
        Panel(
            "3: class words", original, f"on object {r['share_on_object_class']:.2f}", run.image_path(r, CLASS_NAME_MAP)
        ),
        Panel("4: mask", run.image_path(r, MASK), "white: editable"),
    ]
    words = [
        Panel(f"5: {word}", original, f"on object {r['share_on_object'][field.key]:.2f}", run.image_path(r, field))
        for word, field in zip(r["words"], word_maps(r["words"]), strict=True)
    ]
    return [first, words]


def input_gradients(runs: Sequence[RunResults]) -> Layout:
    """Per image the mask and the gradient of the target under each augmentation, with the share of the gradient on the
    object and the probability of the target (DiG-IN, Fig. 13)."""
    return Layout([
        Block(f"{r['source']} → {r['target']}", [_gradients(run, r)]) for run in runs for r in run.records
    ])  # fmt: skip


def _gradients(run: RunResults, r: Record) -> list[Panel]:
    shares = r.get("share_on_object", {})  # empty with task.preserve=none: no object was segmented
    on_object = {name: f"on object {share:.2f}\n" for name, share in shares.items()}
    panels = [("original", run.image_path(r, ORIGINAL), f"object {r['object_area']:.2f}" if shares else "")]
    if shares:
        panels.append(("mask", run.image_path(r, MASK), ""))
    panels += [
        (name.replace("_", " "), run.image_path(r, gradient_field(name)), f"{on_object.get(name, '')}p {p:.2g}")
        for name, p in r["probability"].items()
    ]
    return [Panel(f"{i}: {heading}", image, caption) for i, (heading, image, caption) in enumerate(panels, start=1)]
