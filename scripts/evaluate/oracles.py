"""Who judges the answers of the planted world: shipped classifiers, and both oracles together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from hydra.utils import instantiate
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.classifier.loaders.shipped import Oracle, load_shipped, shipped_oracle
from classifier_lens.runner.configuration.compose import configure
from classifier_lens.runner.protocols import TextSegmenter
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import BATCH, Answer, Setting, world

CLASSIFIER = "planted_clean"  # whose world the judges share
ORACLES = ("oracle_convnext", "oracle_mobilenet")  # the first one's features measure KID
TIED = tuple(planted.SHORTCUTS)
THERE = 0.02  # share of the pixels; objects of the planted world take up a tenth or more


@cache
def oracle(setting: Setting, name: str) -> Oracle:
    """A shipped oracle, on the generator's device."""
    return shipped_oracle(name).to(world(setting, CLASSIFIER).generator.device)


def read(setting: Setting, name: str, factor: str, images: Float[Tensor, "b 3 h w"]) -> list[str]:
    """What an oracle sees in pictures: a name per picture of `class`, `background`, `prop` or `hue`."""
    judge, device = oracle(setting, name), world(setting, CLASSIFIER).generator.device
    logits = torch.cat([judge.read(part.to(device))[factor] for part in images.split(4 * BATCH)])
    return [judge.heads[factor][i] for i in logits.argmax(dim=1).tolist()]


def features(setting: Setting, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
    """The first oracle's features."""
    judge, device = oracle(setting, ORACLES[0]), world(setting, CLASSIFIER).generator.device
    return torch.cat([judge.features(part.to(device)) for part in images.split(4 * BATCH)]).cpu()


@cache
def network(setting: Setting, name: str) -> ImageClassifier:
    """A shipped classifier, on the generator's device."""
    classifier: ImageClassifier = load_shipped(name).to(world(setting, CLASSIFIER).generator.device)
    return classifier


@torch.no_grad()
def called(setting: Setting, name: str, images: Float[Tensor, "b 3 h w"]) -> list[str]:
    """What a shipped classifier calls pictures."""
    judge, device = network(setting, name), world(setting, CLASSIFIER).generator.device
    logits = torch.cat([judge(part.to(device)).logits for part in images.split(4 * BATCH)])
    return [judge.labels[i] for i in logits.argmax(dim=1).tolist()]


@cache
def segmenter() -> TextSegmenter:
    """The shipped network that finds what a text names."""
    found: TextSegmenter = instantiate(configure([f"classifier={CLASSIFIER}"])["text_segmenter"])
    return found


def found(setting: Setting, images: Float[Tensor, "b 3 h w"], names: Sequence[str]) -> list[bool]:
    """Per picture whether the segmenter finds what a name says, on `THERE` of the pixels or more."""
    masks = segmenter().find(images.to(world(setting, CLASSIFIER).generator.device), names)
    return (masks.flatten(1).mean(dim=1) >= THERE).tolist()


def both(
    setting: Setting, factor: str, images: Float[Tensor, "b 3 h w"], wanted: Sequence[str]
) -> list[bool]:  # fmt: skip
    """Per picture whether both oracles read the wanted value of a factor."""
    if not len(images):
        return []
    readings = [read(setting, name, factor, images) for name in ORACLES]
    return [all(value == want for value in values) for *values, want in zip(*readings, wanted, strict=True)]


def answered(given: Sequence[Answer]) -> tuple[list[int], Float[Tensor, "b 3 h w"]]:
    """The positions of the answers that have a picture, and the pictures."""
    rows = [i for i, a in enumerate(given) if a.best is not None]
    images = [a.best for a in given if a.best is not None]
    return rows, torch.stack(images) if images else torch.zeros(0, 3, planted.SIZE, planted.SIZE)


def all_of(*verdicts: Sequence[bool]) -> list[bool]:
    """Per picture whether every verdict holds."""
    return [all(values) for values in zip(*verdicts, strict=True)]


def share_of(hits: Sequence[bool], note: str) -> Estimate:
    """A share with its interval; undefined where there is nothing to share."""
    if len(hits) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), f"{note}; only {len(hits)} to judge")
    return estimates.share(hits, note)


def succeeded(given: Sequence[Answer]) -> tuple[list[Answer], Float[Tensor, "b 3 h w"]]:
    """The answers that reached the gap, and their pictures."""
    own = [a for a in given if a.success]
    return own, answered(own)[1]
