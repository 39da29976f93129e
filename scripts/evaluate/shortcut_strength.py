"""Metrics that check whether a class explanation shows a planted bias (DiffExplainer, Section 4.5): one classifier per
shortcut strength, with equal training otherwise."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from statistics import fmean

from classifier_lens.data import planted
from classifier_lens.data.digests import hash_values
from classifier_lens.models.classifier.loaders.shipped import load_shipped
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Metric, Result, Setting, compute_results
from classifier_lens.scripts.evaluate.oracles import SHORTCUT_CLASSES, oracles_confirm
from classifier_lens.scripts.train import classifier
from classifier_lens.scripts.train.measure_classifier import shortcut_reliance

STRENGTHS = (0.0, 0.5, 0.9, 0.99)
# The settings of the shipped shortcut classifier, with fewer images and steps; on a CPU, so that weights are
# reproducible.
TRAINING_OVERRIDES = ("name=planted_shortcut", "images=8000", "steps=600", "test_images=500", "device=cpu")
RENDERS_PER_CLASS = 300  # test images per class and condition for the recall with and without the cue


@cache
def trained_classifier(setting: Setting, strength: float) -> Path:
    """The folder of a classifier with shortcuts of this strength, trained unless an earlier process did."""
    recipe = (*TRAINING_OVERRIDES, f"shortcut_strength={strength:g}")
    folder = Path(setting.outputs).resolve() / "classifiers" / f"bias-{strength:g}-{hash_values(recipe)[:8]}"
    if not (folder / "README.md").is_file():  # written last
        with redirect_stdout(sys.stderr):
            classifier.main([*recipe, f"out={folder}"])
    return folder


def explain_classes(setting: Setting, n: int, strength: float) -> list[Result]:
    """Results of `n` class explanations of the classes with a shortcut."""
    overrides = (
        "experiment=planted/bias", f"classifier.path={trained_classifier(setting, strength)}",
        f"task.num_seeds={-(-n // len(SHORTCUT_CLASSES))}", f"seed={setting.seed}",
    )  # fmt: skip
    return [result for result in compute_results(setting, "trained", overrides, n) if result.record is not None]


def bias_cue_share(setting: Setting, n: int, strength: float) -> Estimate:
    """The share of an explanation's images in which both oracles see the cue of the class, mean over explanations. The
    note has the share in which they see the class, the activation score and that of the class name, and the recall of
    the classes with a shortcut with and without their cues."""
    cues, objects, scores, class_name_scores = [], [], [], []
    for result in explain_classes(setting, n, strength):
        assert result.record is not None and result.samples is not None
        images = result.samples
        name = planted.CLASSES[result.problem.target]
        factor, value = planted.SHORTCUTS[name]
        cues.append(fmean(oracles_confirm(setting, factor, images, [value] * len(images))))
        objects.append(fmean(oracles_confirm(setting, "class", images, [name] * len(images))))
        scores.append(result.record["activation_score"])
        class_name_scores.append(result.record["baseline_prompts"]["class_name"]["activation_score"])
    if len(cues) < 2:
        return estimates.undefined(f"{len(cues)} of {n} problems have a result")
    classifier = load_shipped(trained_classifier(setting, strength))
    facts = [
        shortcut_reliance(classifier, name, RENDERS_PER_CLASS, planted.SPLIT_SEEDS["test"]) for name in SHORTCUT_CLASSES
    ]
    recall = {key: 100 * fmean(fact[f"recall_{key}_cue"] for fact in facts) for key in ("with", "without")}
    note = (
        f"class seen in {100 * fmean(objects):.1f} %, activation score {100 * fmean(scores):.1f} %, of the class name "
    )
    note += f"{100 * fmean(class_name_scores):.1f} %"
    note += f"; recall with the cue {recall['with']:.1f} %, without {recall['without']:.1f} %"
    return estimates.mean(cues, note)


METRICS = tuple(
    Metric(f"planted.bias_{100 * strength:.0f}", partial(bias_cue_share, strength=strength), 4, "%")
    for strength in STRENGTHS
)
