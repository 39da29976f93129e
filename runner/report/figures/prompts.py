"""Figures of optimized prompts (DiffExplainer): `diffexplainer_class`, `spurious_audit`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from classifier_lens.runner.report.figures.drawing import Block, Layout, Matrix, Panel, escape_math
from classifier_lens.runner.result_schema import RESULT, SAMPLES, Record
from classifier_lens.runner.results.reader import RunResults, distinguishing_names, group_by
from classifier_lens.tasks.spurious_audit import TRAINING_CAM, TRAINING_IMAGE

IMAGES_OF_ONE_RUN, IMAGES_PER_RUN = 4, 2  # per prompt, in a figure of one run and of several runs
LABEL_COLORS = {"core": "tab:green", "spurious": "tab:red"}  # by annotation
STATISTICS = {"accuracy": "agree", "balanced_accuracy": "balanced", "kappa": "Cohen's κ", "auc": "AUC of r"}


def diffexplainer_class(runs: Sequence[RunResults]) -> Layout:
    """Per class images of the restart with the lowest loss, with its activation score and those of the baseline prompts
    (teaser, Fig. 8 and 9); of several runs a column each (Fig. 2 to 4)."""
    names = distinguishing_names(runs, "DiffExplainer", [run.config["task"]["prompt"] for run in runs])
    best = [
        {records[0]["target"]: min(records, key=_loss) for records in group_by(run.records, "target")} for run in runs
    ]
    blocks = []
    for target in dict.fromkeys(target for of_run in best for target in of_run):
        results = [
            (run, name, of_run[target]) for run, name, of_run in zip(runs, names, best, strict=True) if target in of_run
        ]
        title = ", ".join([target, *(f"“{r['prompt']}”" for run, _, r in results if _prompt_is_exact(run))])
        blocks.append(Block(title, _columns(results) if len(runs) > 1 else [_row(*results[0])]))
    return Layout(blocks)


def _loss(r: Record) -> float:
    return float(r["loss"]["total"])


def _prompt_is_exact(run: RunResults) -> bool:
    """Whether the recorded prompt generated the images; otherwise it has the vocabulary tokens nearest to a soft
    prompt."""
    return run.config["task"]["baseline"] == "none" and run.options["parametrization"] == "hard_prompt"


def _images(run: RunResults, r: Record) -> list[Path]:
    """The images of a result, the best one first."""
    return [run.image_path(r, image) for image in (RESULT, *SAMPLES.images(r["images"]))]


def _scores(r: Record) -> str:
    """The activation scores of a result and of each baseline prompt."""
    baselines = [
        f"{name.replace('_', ' ')} {prompt['activation_score']:.2f}" for name, prompt in r["baseline_prompts"].items()
    ]
    return "\n".join([f"score {r['activation_score']:.2f}", *baselines])


def _row(run: RunResults, name: str, r: Record) -> list[Panel]:
    first, *others = _images(run, r)[:IMAGES_OF_ONE_RUN]
    return [Panel("1: optimized prompt", first, _scores(r)), *(Panel("", image) for image in others)]


def _columns(results: Sequence[tuple[RunResults, str, Record]]) -> list[list[Panel]]:
    """A column of images per run, with equally many images of every run."""
    columns = [_images(run, r)[:IMAGES_PER_RUN] for run, _, r in results]
    *above, last = zip(*columns, strict=False)
    names, scores = [name for _, name, _ in results], [_scores(r) for *_, r in results]
    headings = [names, *([""] * len(names) for _ in above)]
    captions = [*([""] * len(names) for _ in above), scores]
    return [
        [Panel(*panel) for panel in zip(heading, images, caption, strict=True)]
        for heading, images, caption in zip(headings, [*above, last], captions, strict=True)
    ]


def spurious_audit(runs: Sequence[RunResults]) -> Layout:
    """Per class a column for each feature: a training image, the HiResCAM map of the feature on it and an image of its
    prompt, green if the feature is annotated as core, red if as spurious (Fig. 5); then the agreement of the verdicts
    with the annotations (Fig. 6)."""
    blocks = [
        Block(records[0]["target"], _features(run, records))
        for run in runs for records in group_by(_verdict_records(run), "target")
    ]  # fmt: skip
    return Layout(blocks, _agreement(runs))


def _verdict_records(run: RunResults) -> list[Record]:
    """The results of the objective that decides the verdicts."""
    return [r for r in run.records if r["objective"] == run.config["task"]["objectives"][0]]


def _features(run: RunResults, records: Sequence[Record]) -> list[list[Panel]]:
    colors = [LABEL_COLORS.get(r["annotation"]) for r in records]
    training = [run.image_path(r, TRAINING_IMAGE) for r in records]
    images = [
        Panel(f"1: {r['unit'].replace('features:', 'feature ')}", image, color=color)
        for r, image, color in zip(records, training, colors, strict=True)
    ]
    maps = [
        Panel("2: HiResCAM", image, heatmap=run.image_path(r, TRAINING_CAM), color=color)
        for r, image, color in zip(records, training, colors, strict=True)
        if TRAINING_CAM.key in r["images"]
    ]  # fmt: skip
    prompts = [
        Panel("3: optimized prompt", run.image_path(r, RESULT), _verdict(r), color=color)
        for r, color in zip(records, colors, strict=True)
    ]
    return [row for row in (images, maps, prompts) if row]


def _verdict(r: Record) -> str:
    low, high = r["r_interval"]
    verdict = f"{r['verdict']}\nr {r['r']:.2f} ({low:.2f} to {high:.2f})"
    return verdict if r["annotation"] is None else f"{verdict}\nannotation: {r['annotation']}"


def _agreement(runs: Sequence[RunResults]) -> Matrix | None:
    """A row per group of classes, in percent; None if no feature is annotated."""
    names = distinguishing_names(runs, "DiffExplainer") if len(runs) > 1 else [""]
    rows = [
        (escape_math(f"{name} {row['group']} ({row['features']})".strip()), row)
        for run, name in zip(runs, names, strict=True) for row in run.summary().get("agreement", [])
    ]  # fmt: skip
    values = [[math.nan if row[key] is None else 100 * row[key] for key in STATISTICS] for _, row in rows]
    title = "agreement with annotations, % (number of features)"
    return Matrix(title, [name for name, _ in rows], list(STATISTICS.values()), values) if rows else None
