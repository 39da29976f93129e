"""Exact effects of backgrounds, props and hues on the predictions of a network, by rendering.

The causal concept effect (CaCE, Goyal et al. 2019) of a value v of a factor on class c is

    E[p(c | v)] − E[p(c | another value of the factor)],

over scenes of c and of the other class of its pair, each with weight one half. All else in a scene is equal. The other
values have equal weights; for a prop one of them is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.data.planted.cues import PLANTED_FACTORS
from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.classifier.loaders.shipped import load_shipped
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.scripts.train.labeled_images import render_8bit
from classifier_lens.scripts.train.measure_classifier import compute_logits

NUM_SCENES = 96  # per class and value; the scenes of all classes and values differ in these alone
SCENE_SEED = 5_000  # of no split
LEARNED_EFFECT = 0.3  # from this effect on a network has learned a shortcut
ABSENT_EFFECT = 0.1  # below this effect it has not; effects between are unclear and count for nothing
EFFECTS_FILE = "effects.json"


class Cell(NamedTuple):
    """A class and a value of a factor."""

    class_name: str
    factor: str
    value: str


Effects = Mapping[Cell, float]


def exact_effects(classifier: ImageClassifier, num_scenes: int = NUM_SCENES) -> dict[Cell, float]:
    """The effect of every background, prop and hue on the probability of every class, in [-1, 1]."""
    effects = {}
    for factor, values in PLANTED_FACTORS.values.items():
        probability = class_probabilities(classifier, factor, num_scenes)
        for i, name in enumerate(planted.CLASSES):
            pair = [planted.CLASSES.index(member) for member in next(pair for pair in planted.PAIRS if name in pair)]
            by_value = probability[pair, :, i].mean(dim=0)
            for k, value in enumerate(values):
                effects[Cell(name, factor, value)] = effect_of_value(by_value, k)
    return effects


def effect_of_value(probability: Float[Tensor, " values"], value: int) -> float:
    """The probability with a value minus its mean over the other values."""
    others = torch.arange(len(probability)) != value
    return float(probability[value] - probability[others].mean())


def class_probabilities(
    classifier: ImageClassifier, factor: str, num_scenes: int
) -> Float[Tensor, "labels values classes"]:  # fmt: skip
    """The mean probability of each class over scenes of each class with each value of a factor."""
    images = renders_by_value(factor, num_scenes)
    probability = compute_logits(classifier, images.flatten(0, 2)).double().softmax(dim=1)
    return probability.unflatten(0, images.shape[:3]).mean(dim=2)


@cache
def renders_by_value(factor: str, num_scenes: int) -> UInt8[Tensor, "labels values scenes 3 h w"]:
    """The same scenes with each class and each value of a factor; the last prop is none."""
    values = [*range(len(PLANTED_FACTORS.values[factor])), *([planted.ABSENT] if factor == "prop" else [])]
    scenes = planted.sample_scenes(num_scenes, SCENE_SEED)
    return torch.stack(
        [
            torch.stack([render_8bit(scenes.with_factors(**{"label": label, factor: value})) for value in values])
            for label in range(len(planted.CLASSES))
        ]
    )


def saved_effects(folder: Path) -> dict[Cell, float]:
    """The exact effects of the network in a folder; they are computed once and saved beside the weights."""
    path, classifier = folder / EFFECTS_FILE, load_shipped(folder)
    key = {"weights": classifier.digest, "scenes": NUM_SCENES}
    if path.is_file():
        saved = json.loads(path.read_text())
        if {name: saved[name] for name in key} == key:
            return {Cell(*cell): effect for *cell, effect in saved["effects"]}
    effects = exact_effects(classifier)
    rows = [[*cell, effect] for cell, effect in effects.items()]
    write_durable(path, json.dumps({**key, "effects": rows}, indent=1) + "\n")
    return effects
