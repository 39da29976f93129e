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
from classifier_lens.models.classifier.loaders.shipped import Oracle, load_oracle, load_shipped
from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.protocols import TextSegmenter
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import BATCH_SIZE, Result, Setting, domain_parts

CLASSIFIER = "planted_clean"  # whose world the judges share
ORACLES = ("oracle_convnext", "oracle_mobilenet")  # the first one's features measure KID
SHORTCUT_CLASSES = tuple(planted.SHORTCUTS)
MIN_OBJECT_AREA = 0.02  # share of the pixels; objects of the planted world take up a tenth or more


@cache
def oracle(setting: Setting, name: str) -> Oracle:
    """A shipped oracle, on the generator's device."""
    return load_oracle(name).to(domain_parts(setting, CLASSIFIER).generator.device)


def predict_factor(setting: Setting, name: str, factor: str, images: Float[Tensor, "b 3 h w"]) -> list[str]:
    """What an oracle sees in pictures: a name per picture of `class`, `background`, `prop` or `hue`."""
    judge, device = oracle(setting, name), domain_parts(setting, CLASSIFIER).generator.device
    logits = torch.cat([judge.predict(part.to(device))[factor] for part in images.split(4 * BATCH_SIZE)])
    return [judge.heads[factor][i] for i in logits.argmax(dim=1).tolist()]


def oracle_features(setting: Setting, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
    """The first oracle's features."""
    judge, device = oracle(setting, ORACLES[0]), domain_parts(setting, CLASSIFIER).generator.device
    return torch.cat([judge.features(part.to(device)) for part in images.split(4 * BATCH_SIZE)]).cpu()


@cache
def shipped_classifier(setting: Setting, name: str) -> ImageClassifier:
    """A shipped classifier, on the generator's device."""
    classifier: ImageClassifier = load_shipped(name).to(domain_parts(setting, CLASSIFIER).generator.device)
    return classifier


@torch.no_grad()
def predicted_labels(setting: Setting, name: str, images: Float[Tensor, "b 3 h w"]) -> list[str]:
    """What a shipped classifier calls pictures."""
    judge, device = shipped_classifier(setting, name), domain_parts(setting, CLASSIFIER).generator.device
    logits = torch.cat([judge(part.to(device)).logits for part in images.split(4 * BATCH_SIZE)])
    return [judge.labels[i] for i in logits.argmax(dim=1).tolist()]


@cache
def load_text_segmenter() -> TextSegmenter:
    """The shipped network that finds what a text names."""
    found: TextSegmenter = instantiate(compose_config([f"classifier={CLASSIFIER}"])["text_segmenter"])
    return found


def contains_object(setting: Setting, images: Float[Tensor, "b 3 h w"], names: Sequence[str]) -> list[bool]:
    """Per picture whether the segmenter finds what a name says, on `MIN_OBJECT_AREA` of the pixels or more."""
    masks = load_text_segmenter().segment(images.to(domain_parts(setting, CLASSIFIER).generator.device), names)
    return (masks.flatten(1).mean(dim=1) >= MIN_OBJECT_AREA).tolist()


def oracles_confirm(
    setting: Setting, factor: str, images: Float[Tensor, "b 3 h w"], expected: Sequence[str]
) -> list[bool]:  # fmt: skip
    """Per picture whether both oracles read the wanted value of a factor."""
    if not len(images):
        return []
    readings = [predict_factor(setting, name, factor, images) for name in ORACLES]
    return [all(value == want for value in values) for *values, want in zip(*readings, expected, strict=True)]


def result_images(given: Sequence[Result]) -> tuple[list[int], Float[Tensor, "b 3 h w"]]:
    """The positions of the answers that have a picture, and the pictures."""
    rows = [i for i, a in enumerate(given) if a.best is not None]
    images = [a.best for a in given if a.best is not None]
    return rows, torch.stack(images) if images else torch.zeros(0, 3, planted.IMAGE_SIZE, planted.IMAGE_SIZE)


def all_true(*verdicts: Sequence[bool]) -> list[bool]:
    """Per picture whether every verdict holds."""
    return [all(values) for values in zip(*verdicts, strict=True)]


def proportion_or_nan(hits: Sequence[bool], note: str) -> Estimate:
    """A share with its interval; undefined where there is nothing to share."""
    if len(hits) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), f"{note}; only {len(hits)} to judge")
    return estimates.proportion(hits, note)


def successful_results(given: Sequence[Result]) -> tuple[list[Result], Float[Tensor, "b 3 h w"]]:
    """The answers that reached the gap, and their pictures."""
    own = [a for a in given if a.success]
    return own, result_images(own)[1]
