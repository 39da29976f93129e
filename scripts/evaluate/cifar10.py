"""Metrics on photographs: CIFAR-10, counterfactuals of the published ResNet-20, and ResNet-56 as independent judge."""

from __future__ import annotations

from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.images import center_crop_resize
from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.types import Example
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import (
    BATCH_SIZE,
    Metric,
    Result,
    Setting,
    compute_results,
    configure_run,
    domain_parts,
    reconstruct,
    sample_images,
    target_prediction_rate,
)
from classifier_lens.tasks.uvce import Uvce

CLASSIFIER, TRANSFER_CLASSIFIER = "cifar10_resnet20", "cifar10_resnet56"


@cache
def transfer_classifier(setting: Setting) -> ImageClassifier:
    """ResNet-56 on the generator's device."""
    parts = domain_parts(setting, CLASSIFIER)
    classifier = build(
        compose_config([f"classifier={TRANSFER_CLASSIFIER}"]), generator=parts.diffusion, data=parts.data
    ).classifier
    assert isinstance(classifier, ImageClassifier)
    return classifier.to(parts.diffusion.device)


@torch.no_grad()
def predicted_classes(setting: Setting, images: Float[Tensor, "b 3 h w"]) -> list[int]:
    """The class index that ResNet-56 predicts per image."""
    device = domain_parts(setting, CLASSIFIER).diffusion.device
    return [
        label
        for part in images.split(4 * BATCH_SIZE)
        for label in transfer_classifier(setting)(part.to(device)).logits.argmax(dim=1).tolist()
    ]


def vae_psnr(setting: Setting, n: int) -> Estimate:
    """Mean PSNR of autoencoded test photographs, the first `n` in the seed's order."""
    parts = domain_parts(setting, CLASSIFIER)
    images = torch.stack([center_crop_resize(parts.data[i].image, parts.diffusion.resolution) for i in range(n)])
    return estimates.mean(estimates.psnr(images, reconstruct(parts.diffusion, images)).tolist())


def prompt_class_accuracy(setting: Setting, n: int, overrides: tuple[str, ...] = ()) -> Estimate:
    """How often ResNet-56 predicts the class in the prompt of a generated image, the classes in turn; overrides: select
    the generator."""
    parts = configure_run(setting, CLASSIFIER, overrides, 1)[0] if overrides else domain_parts(setting, CLASSIFIER)
    assert isinstance(parts.task, Uvce)
    labels = parts.classifier.labels
    prompt_classes = [i % len(labels) for i in range(n)]
    blank = torch.zeros(3, parts.diffusion.resolution, parts.diffusion.resolution)
    prompts = [parts.task.captioner.caption(Example("prompt", blank.clone, labels[c])) for c in prompt_classes]
    images = sample_images(parts.diffusion, prompts, [setting.image_seed(i) for i in range(n)])
    return estimates.proportion(
        [a == b for a, b in zip(predicted_classes(setting, images), prompt_classes, strict=True)]
    )


def counterfactuals(setting: Setting, n: int, baseline: str) -> tuple[Result, ...]:
    """Counterfactuals of the first `n` test photographs in the seed's order, each towards the strongest wrong class."""
    return compute_results(setting, CLASSIFIER, (f"task.baseline={baseline}", f"seed={setting.seed}"), n)


def target_rate(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often the explained classifier predicts the target."""
    return target_prediction_rate(counterfactuals(setting, n, baseline))


def transfer_hits(setting: Setting, n: int, baseline: str) -> list[bool]:
    """Per problem, whether ResNet-56 predicts the target; false without a result."""
    results = counterfactuals(setting, n, baseline)
    images = [result.best for result in results if result.best is not None]
    predictions = iter(predicted_classes(setting, torch.stack(images)) if images else [])
    return [result.best is not None and next(predictions) == result.problem.target for result in results]


def transfer_gain(setting: Setting, n: int, baseline: str) -> Estimate:
    """How much more often ResNet-56 predicts the target than for the images of a baseline, over the same problems."""
    hits, baseline_hits = transfer_hits(setting, n, "none"), transfer_hits(setting, n, baseline)
    note = f"{100 * sum(hits) / n:.1f} % against {100 * sum(baseline_hits) / n:.1f} % for {baseline}"
    return estimates.paired_difference(hits, baseline_hits, note)


METRICS = (
    Metric("cifar10.vae_psnr", vae_psnr, 512, "dB", 24.0),
    Metric("cifar10.prompt_class", prompt_class_accuracy, 500, "%", 0.65),
    Metric("cifar10.lcm_class", partial(prompt_class_accuracy, overrides=("sampler=lcm",)), 500, "%"),
    Metric("cifar10.uvce_target_rate", partial(target_rate, baseline="none"), 64, "%", 0.95),
    Metric("cifar10.uvce_target_rate.start_only", partial(target_rate, baseline="start_only"), 64, "%"),
    Metric("cifar10.uvce_target_rate.pixels", partial(target_rate, baseline="pixels"), 64, "%"),
    Metric("cifar10.uvce_transfer", partial(transfer_gain, baseline="pixels"), 64, "%", 0.20, interval_threshold=0.0),
    Metric("cifar10.uvce_transfer.start_only", partial(transfer_gain, baseline="start_only"), 64, "%"),
)
