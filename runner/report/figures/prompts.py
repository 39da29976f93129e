"""Figures of what optimised prompts show (DiffExplainer): `diffexplainer_class`, `spurious_audit`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from classifier_lens.runner.report.figures.drawing import Block, Layout, Matrix, Panel, escape_math
from classifier_lens.runner.results.reader import Record, RunResults, distinguishing_names, group_by

IMAGES_OF_ONE_RUN, IMAGES_PER_RUN = 4, 2  # pictures of an answer: of one run, and of each of several
LABEL_COLORS = {"core": "tab:green", "spurious": "tab:red"}  # of what people say of a feature
STATISTICS = {"agree": "agree", "balanced_accuracy": "balanced", "kappa": "Cohen's κ", "auc": "AUC of r"}


def diffexplainer_class(runs: Sequence[RunResults]) -> Layout:
    """Per class pictures of the restart with the lowest loss, with how often they and those of plain prompts are called
    so (teaser, Fig. 8 and 9); of several runs a column each (Fig. 2 to 4)."""
    names = distinguishing_names(runs, "DiffExplainer", [run.config["task"]["prompt"] for run in runs])
    answers = [{own[0]["target"]: min(own, key=_loss) for own in group_by(run.records, "target")} for run in runs]
    blocks = []
    for target in dict.fromkeys(target for own in answers for target in own):
        given = [(run, name, own[target]) for run, name, own in zip(runs, names, answers, strict=True) if target in own]
        title = ", ".join([target, *(f"“{r['prompt']}”" for run, _, r in given if _prompt_is_exact(run))])
        blocks.append(Block(title, _columns(given) if len(runs) > 1 else [_line(*given[0])]))
    return Layout(blocks)


def _loss(r: Record) -> float:
    return float(r["loss"]["total"])


def _prompt_is_exact(run: RunResults) -> bool:
    """Whether the prompt of an answer is what its pictures were drawn of, and not the words nearest to it."""
    method = run.config["task"]["baseline"] == "none"
    return (
        method
        and run.config["parametrization"].get("tokens", {}).get("_target_")
        == "classifier_lens.models.generator.prompt_tuning.HardPrompt"
    )


def _pictures(run: RunResults, r: Record) -> list[Path]:
    """Those of an answer, the one that counts first."""
    return [run.image_path(r, key) for key in ("best", *sorted(k for k in r["images"] if k.startswith("sample_")))]


def _scores(r: Record) -> str:
    """The share of an answer's pictures that are called its class, and of those of each plain prompt."""
    plain = [f"{name} {rival['activation_score']:.2f}" for name, rival in r["rivals"].items()]
    return "\n".join([f"called so {r['activation_score']:.2f}", *plain])


def _line(run: RunResults, name: str, r: Record) -> list[Panel]:
    first, *others = _pictures(run, r)[:IMAGES_OF_ONE_RUN]
    return [Panel("result", first, _scores(r)), *(Panel("", picture) for picture in others)]


def _columns(given: Sequence[tuple[RunResults, str, Record]]) -> list[list[Panel]]:
    """A run's pictures below each other, as many of every run."""
    columns = [_pictures(run, r)[:IMAGES_PER_RUN] for run, _, r in given]
    *above, last = zip(*columns, strict=False)
    names, scores = [name for _, name, _ in given], [_scores(r) for *_, r in given]
    headings = [names, *([""] * len(names) for _ in above)]
    captions = [*([""] * len(names) for _ in above), scores]
    return [
        [Panel(*panel) for panel in zip(heading, pictures, caption, strict=True)]
        for heading, pictures, caption in zip(headings, [*above, last], captions, strict=True)
    ]


def spurious_audit(runs: Sequence[RunResults]) -> Layout:
    """Per class a column for each feature: a training picture, where the feature looks in it, and a picture of its
    prompt, green where people call it core and red where spurious (Fig. 5); below them how far the verdicts agree with
    people (Fig. 6)."""
    blocks = [
        Block(own[0]["target"], _features(run, own)) for run in runs for own in group_by(_deciding(run), "target")
    ]  # fmt: skip
    return Layout(blocks, _agreement(runs))


def _deciding(run: RunResults) -> list[Record]:
    """The answers from which verdicts are drawn."""
    return [r for r in run.records if r["objective"] == run.config["task"]["objectives"][0]]


def _features(run: RunResults, own: Sequence[Record]) -> list[list[Panel]]:
    colours = [LABEL_COLORS.get(r["label"]) for r in own]
    training = [run.image_path(r, "training") for r in own]
    first = [
        Panel(r["unit"].replace("features:", "feature "), picture, color=colour)
        for r, picture, colour in zip(own, training, colours, strict=True)
    ]
    maps = [
        Panel("HiResCAM", picture, heatmap=run.image_path(r, "cam-training"), color=colour)
        for r, picture, colour in zip(own, training, colours, strict=True)
        if "cam-training" in r["images"]
    ]  # fmt: skip
    prompted = [
        Panel("prompt", run.image_path(r, "best"), _verdict(r), color=colour)
        for r, colour in zip(own, colours, strict=True)
    ]
    return [line for line in (first, maps, prompted) if line]


def _verdict(r: Record) -> str:
    low, high = r["r_interval"]
    said = f"{r['verdict']}\nr {r['r']:.2f} ({low:.2f} to {high:.2f})"
    return said if r["label"] is None else f"{said}\nlabel: {r['label']}"


def _agreement(runs: Sequence[RunResults]) -> Matrix | None:
    """A row per group of classes, in percent; None where no feature has a label."""
    names = distinguishing_names(runs, "DiffExplainer") if len(runs) > 1 else [""]
    rows = [
        (escape_math(f"{name} {row['group']} ({row['features']})".strip()), row)
        for run, name in zip(runs, names, strict=True) for row in run.summary().get("agreement", [])
    ]  # fmt: skip
    values = [[math.nan if row[key] is None else 100 * row[key] for key in STATISTICS] for _, row in rows]
    title = "agreement with the labels by group of classes (features in it), %"
    return Matrix(title, [name for name, _ in rows], list(STATISTICS.values()), values) if rows else None
