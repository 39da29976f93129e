"""Rows of real photographs: CIFAR-10, the published ResNet-20 explained, ResNet-56 as a judge that takes no part."""

from __future__ import annotations

from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.image_folder import center_crop_resize
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
    """ResNet-56, on the generator's device."""
    shared = domain_parts(setting, CLASSIFIER)
    found = build(
        compose_config([f"classifier={TRANSFER_CLASSIFIER}"]), generator=shared.diffusion, data=shared.data
    ).classifier
    assert isinstance(found, ImageClassifier)
    return found.to(shared.diffusion.device)


@torch.no_grad()
def predicted_classes(setting: Setting, images: Float[Tensor, "b 3 h w"]) -> list[int]:
    """The class that ResNet-56 gives each picture."""
    device = domain_parts(setting, CLASSIFIER).diffusion.device
    return [
        i
        for part in images.split(4 * BATCH_SIZE)
        for i in transfer_classifier(setting)(part.to(device)).logits.argmax(dim=1).tolist()
    ]


def vae_psnr(setting: Setting, n: int) -> Estimate:
    """PSNR of autoencoded test photographs, the first in the seed's order."""
    shared = domain_parts(setting, CLASSIFIER)
    images = torch.stack([center_crop_resize(shared.data[i].image, shared.diffusion.resolution) for i in range(n)])
    return estimates.mean(estimates.psnr(images, reconstruct(shared.diffusion, images)).tolist())


def prompt_class_accuracy(setting: Setting, n: int, overrides: tuple[str, ...] = ()) -> Estimate:
    """How often ResNet-56 gives a sampled picture the class of its prompt, the classes taken in turn; overrides: choose
    the generator."""
    shared = configure_run(setting, CLASSIFIER, overrides, 1)[0] if overrides else domain_parts(setting, CLASSIFIER)
    assert isinstance(shared.task, Uvce)
    labels = shared.classifier.labels
    wanted = [i % len(labels) for i in range(n)]
    blank = torch.zeros(3, shared.diffusion.resolution, shared.diffusion.resolution)
    prompts = [shared.task.captioner.caption(Example("prompt", blank.clone, labels[c])) for c in wanted]
    images = sample_images(shared.diffusion, prompts, [setting.image_seed(i) for i in range(n)])
    return estimates.proportion([a == b for a, b in zip(predicted_classes(setting, images), wanted, strict=True)])


def counterfactuals(setting: Setting, n: int, baseline: str) -> tuple[Result, ...]:
    """Answers to the first test photographs of the seed's order, each towards the strongest wrong class."""
    return compute_results(setting, CLASSIFIER, (f"task.baseline={baseline}", f"seed={setting.seed}"), n)


def flip_rate(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often the explained classifier predicts the target."""
    return target_prediction_rate(counterfactuals(setting, n, baseline))


def transfer_hits(setting: Setting, n: int, baseline: str) -> list[bool]:
    """Per question, whether ResNet-56 predicts the target; not where there is no answer."""
    given = counterfactuals(setting, n, baseline)
    images = [a.best for a in given if a.best is not None]
    seen = iter(predicted_classes(setting, torch.stack(images)) if images else [])
    return [a.best is not None and next(seen) == a.problem.target for a in given]


def transfer_gain(setting: Setting, n: int, rival: str) -> Estimate:
    """How much more often ResNet-56 predicts the target than for the rival's pictures, over the same questions."""
    own, other = transfer_hits(setting, n, "none"), transfer_hits(setting, n, rival)
    note = f"{100 * sum(own) / n:.1f} % against {100 * sum(other) / n:.1f} % for {rival}"
    return estimates.paired_difference(own, other, note)


ROWS = (
    Metric("cifar10.vae_psnr", vae_psnr, 512, "dB", 24.0),
    Metric("cifar10.prompt_class", prompt_class_accuracy, 500, "%", 0.65),
    Metric("cifar10.lcm_class", partial(prompt_class_accuracy, overrides=("sampler=lcm",)), 500, "%"),
    Metric("cifar10.uvce_flips", partial(flip_rate, baseline="none"), 64, "%", 0.95),
    Metric("cifar10.uvce_flips.start_only", partial(flip_rate, baseline="start_only"), 64, "%"),
    Metric("cifar10.uvce_flips.pixels", partial(flip_rate, baseline="pixels"), 64, "%"),
    Metric("cifar10.uvce_transfer", partial(transfer_gain, rival="pixels"), 64, "%", 0.20, interval_threshold=0.0),
    Metric("cifar10.uvce_transfer.start_only", partial(transfer_gain, rival="start_only"), 64, "%"),
)
