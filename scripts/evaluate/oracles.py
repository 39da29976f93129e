"""Networks that judge the results in the planted world: shipped classifiers, and both oracles together."""

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

CLASSIFIER = "planted_clean"  # its domain has the generator and the data
ORACLES = ("oracle_convnext", "oracle_mobilenet")  # the features of the first one are used for KID
SHORTCUT_CLASSES = tuple(planted.SHORTCUTS)
MIN_OBJECT_AREA = 0.02  # share of the pixels; objects of the planted world take up a tenth or more


@cache
def oracle(setting: Setting, name: str) -> Oracle:
    """A shipped oracle on the generator's device."""
    return load_oracle(name).to(domain_parts(setting, CLASSIFIER).generator.device)


def predict_factor(setting: Setting, name: str, factor: str, images: Float[Tensor, "b 3 h w"]) -> list[str]:
    """The value of a factor that an oracle predicts per image; factor: class, background, prop or hue."""
    model, device = oracle(setting, name), domain_parts(setting, CLASSIFIER).generator.device
    logits = torch.cat([model.predict(part.to(device))[factor] for part in images.split(4 * BATCH_SIZE)])
    return [model.heads[factor][i] for i in logits.argmax(dim=1).tolist()]


def oracle_features(setting: Setting, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
    """Features of the first oracle."""
    model, device = oracle(setting, ORACLES[0]), domain_parts(setting, CLASSIFIER).generator.device
    return torch.cat([model.features(part.to(device)) for part in images.split(4 * BATCH_SIZE)]).cpu()


@cache
def shipped_classifier(setting: Setting, name: str) -> ImageClassifier:
    """A shipped classifier on the generator's device."""
    classifier: ImageClassifier = load_shipped(name).to(domain_parts(setting, CLASSIFIER).generator.device)
    return classifier


@torch.no_grad()
def predicted_labels(setting: Setting, name: str, images: Float[Tensor, "b 3 h w"]) -> list[str]:
    """The label that a shipped classifier predicts per image."""
    model, device = shipped_classifier(setting, name), domain_parts(setting, CLASSIFIER).generator.device
    logits = torch.cat([model(part.to(device)).logits for part in images.split(4 * BATCH_SIZE)])
    return [model.labels[i] for i in logits.argmax(dim=1).tolist()]


@cache
def load_text_segmenter() -> TextSegmenter:
    """The shipped text-prompted segmenter."""
    segmenter: TextSegmenter = instantiate(compose_config([f"classifier={CLASSIFIER}"])["text_segmenter"])
    return segmenter


def contains_object(setting: Setting, images: Float[Tensor, "b 3 h w"], names: Sequence[str]) -> list[bool]:
    """Per image whether the segmenter finds the named object on at least `MIN_OBJECT_AREA` of the pixels."""
    masks = load_text_segmenter().segment(images.to(domain_parts(setting, CLASSIFIER).generator.device), names)
    return (masks.flatten(1).mean(dim=1) >= MIN_OBJECT_AREA).tolist()


def oracles_confirm(
    setting: Setting, factor: str, images: Float[Tensor, "b 3 h w"], expected: Sequence[str]
) -> list[bool]:  # fmt: skip
    """Per image whether both oracles predict the expected value of a factor."""
    if not len(images):
        return []
    readings = [predict_factor(setting, name, factor, images) for name in ORACLES]
    return [
        all(value == expected_value for value in values)
        for *values, expected_value in zip(*readings, expected, strict=True)
    ]


def cues_confirmed(setting: Setting, results: Sequence[Result], images: Float[Tensor, "b 3 h w"]) -> list[bool]:
    """Per result whether both oracles see the cue of its target class; images: of the results."""
    cues = [planted.SHORTCUTS[planted.CLASSES[result.problem.target]] for result in results]
    return [oracles_confirm(setting, factor, images[i : i + 1], [value])[0] for i, (factor, value) in enumerate(cues)]


def result_images(results: Sequence[Result]) -> tuple[list[int], Float[Tensor, "b 3 h w"]]:
    """The indices of the results that have an image, and the images."""
    indices = [i for i, result in enumerate(results) if result.best is not None]
    images = [result.best for result in results if result.best is not None]
    return indices, torch.stack(images) if images else torch.zeros(0, 3, planted.IMAGE_SIZE, planted.IMAGE_SIZE)


def all_true(*verdicts: Sequence[bool]) -> list[bool]:
    """Per image whether every verdict is true."""
    return [all(values) for values in zip(*verdicts, strict=True)]


def proportion_or_nan(hits: Sequence[bool], note: str) -> Estimate:
    """A share with its interval; undefined for fewer than two values."""
    if len(hits) < 2:
        return estimates.undefined(f"{note}; only {len(hits)} to judge")
    return estimates.proportion(hits, note)


def successful_results(results: Sequence[Result]) -> tuple[list[Result], Float[Tensor, "b 3 h w"]]:
    """The successful results, and their images."""
    successes = [result for result in results if result.success]
    return successes, result_images(successes)[1]
