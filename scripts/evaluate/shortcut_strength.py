"""Rows that check whether the portrait of a class shows a bias that was planted (DiffExplainer, Section 4.5): one
classifier per strength of the ties, trained alike but for it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from statistics import fmean

from classifier_lens.data import planted
from classifier_lens.data.image_selection import hash_values
from classifier_lens.models.classifier.loaders.shipped import load_shipped
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Metric, Result, Setting, compute_results
from classifier_lens.scripts.evaluate.oracles import SHORTCUT_CLASSES, oracles_confirm
from classifier_lens.scripts.train import classifier
from classifier_lens.scripts.train.measure_classifier import shortcut_reliance

STRENGTHS = (0.0, 0.5, 0.9, 0.99)
# The shortcut classifiers' own recipe, with fewer pictures and steps; on a CPU, so that weights repeat.
TRAINING_OVERRIDES = ("name=planted_shortcut", "images=8000", "steps=600", "test_images=500", "device=cpu")
RENDERS_PER_CLASS = 300  # test pictures per class and question of what a classifier leans on


@cache
def trained_classifier(setting: Setting, strength: float) -> Path:
    """The folder of a classifier whose ties have this strength, trained unless an earlier process did."""
    recipe = (*TRAINING_OVERRIDES, f"shortcut_strength={strength:g}")
    folder = Path(setting.outputs).resolve() / "classifiers" / f"bias-{strength:g}-{hash_values(recipe)[:8]}"
    if not (folder / "README.md").is_file():  # the last that is written
        with redirect_stdout(sys.stderr):
            classifier.main([*recipe, f"out={folder}"])
    return folder


def explain_classes(setting: Setting, n: int, strength: float) -> list[Result]:
    """Answers to the first `n` portraits of the tied classes."""
    overrides = (
        "experiment=planted/bias", f"classifier.path={trained_classifier(setting, strength)}",
        f"task.num_seeds={-(-n // len(SHORTCUT_CLASSES))}", f"seed={setting.seed}",
    )  # fmt: skip
    return [given for given in compute_results(setting, "trained", overrides, n) if given.record is not None]


def bias_cue_share(setting: Setting, n: int, strength: float) -> Estimate:
    """The share of a portrait's pictures in which both oracles see the class's cue, mean over portraits. The note has
    the share in which they see the class, the activation score beside that of the class's name, and what the classifier
    leans on: the recall of the tied classes with and without their cues."""
    cues, objects, scores, named = [], [], [], []
    for given in explain_classes(setting, n, strength):
        assert given.record is not None and given.samples is not None
        images = given.samples
        name = planted.CLASSES[given.problem.target]
        factor, value = planted.SHORTCUTS[name]
        cues.append(fmean(oracles_confirm(setting, factor, images, [value] * len(images))))
        objects.append(fmean(oracles_confirm(setting, "class", images, [name] * len(images))))
        scores.append(given.record["activation_score"])
        named.append(given.record["rivals"]["class name"]["activation_score"])
    if len(cues) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), f"{len(cues)} of {n} answered")
    classifier = load_shipped(trained_classifier(setting, strength))
    facts = [
        shortcut_reliance(classifier, name, RENDERS_PER_CLASS, planted.SPLIT_SEEDS["test"]) for name in SHORTCUT_CLASSES
    ]
    recall = {key: 100 * fmean(fact[f"recall_{key}_cue"] for fact in facts) for key in ("with", "without")}
    return estimates.mean(
        cues,
        f"class seen in {100 * fmean(objects):.1f} %, activation score {100 * fmean(scores):.1f} %, of the name "
        f"{100 * fmean(named):.1f} %; recall with the cue {recall['with']:.1f} %, without {recall['without']:.1f} %",
    )


ROWS = tuple(
    Metric(f"planted.bias_{100 * strength:.0f}", partial(bias_cue_share, strength=strength), 4, "%")
    for strength in STRENGTHS
)
