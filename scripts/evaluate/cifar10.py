"""Rows of real photographs: CIFAR-10, the published ResNet-20 explained, ResNet-56 as a judge that takes no part."""

from __future__ import annotations

from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.image_folder import square
from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.runner.configuration.compose import build, configure
from classifier_lens.runner.types import Example
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import (
    BATCH,
    Answer,
    Row,
    Setting,
    answers,
    autoencoded,
    parts_for,
    predicted_as_asked,
    sample,
    world,
)
from classifier_lens.tasks.uvce import Uvce

CLASSIFIER, JUDGE = "cifar10_resnet20", "cifar10_resnet56"


@cache
def judge(setting: Setting) -> ImageClassifier:
    """ResNet-56, on the generator's device."""
    shared = world(setting, CLASSIFIER)
    found = build(configure([f"classifier={JUDGE}"]), generator=shared.diffusion, data=shared.data).classifier
    assert isinstance(found, ImageClassifier)
    return found.to(shared.diffusion.device)


@torch.no_grad()
def called(setting: Setting, images: Float[Tensor, "b 3 h w"]) -> list[int]:
    """The class that ResNet-56 gives each picture."""
    device = world(setting, CLASSIFIER).diffusion.device
    return [
        i for part in images.split(4 * BATCH) for i in judge(setting)(part.to(device)).logits.argmax(dim=1).tolist()
    ]


def vae_psnr(setting: Setting, n: int) -> Estimate:
    """PSNR of autoencoded test photographs, the first in the seed's order."""
    shared = world(setting, CLASSIFIER)
    images = torch.stack([square(shared.data[i].image, shared.diffusion.resolution) for i in range(n)])
    return estimates.mean(estimates.psnr(images, autoencoded(shared.diffusion, images)).tolist())


def prompt_class(setting: Setting, n: int, overrides: tuple[str, ...] = ()) -> Estimate:
    """How often ResNet-56 gives a sampled picture the class of its prompt, the classes taken in turn; overrides: choose
    the generator."""
    shared = parts_for(setting, CLASSIFIER, overrides, 1)[0] if overrides else world(setting, CLASSIFIER)
    assert isinstance(shared.task, Uvce)
    labels = shared.classifier.labels
    wanted = [i % len(labels) for i in range(n)]
    blank = torch.zeros(3, shared.diffusion.resolution, shared.diffusion.resolution)
    prompts = [shared.task.captioner.caption(Example("prompt", blank.clone, labels[c])) for c in wanted]
    images = sample(shared.diffusion, prompts, [setting.own_seed(i) for i in range(n)])
    return estimates.share([a == b for a, b in zip(called(setting, images), wanted, strict=True)])


def counterfactuals(setting: Setting, n: int, baseline: str) -> tuple[Answer, ...]:
    """Answers to the first test photographs of the seed's order, each towards the strongest wrong class."""
    return answers(setting, CLASSIFIER, (f"task.baseline={baseline}", f"seed={setting.seed}"), n)


def uvce_flips(setting: Setting, n: int, baseline: str) -> Estimate:
    """How often the explained classifier predicts the target."""
    return predicted_as_asked(counterfactuals(setting, n, baseline))


def transfers(setting: Setting, n: int, baseline: str) -> list[bool]:
    """Per question, whether ResNet-56 predicts the target; not where there is no answer."""
    given = counterfactuals(setting, n, baseline)
    images = [a.best for a in given if a.best is not None]
    seen = iter(called(setting, torch.stack(images)) if images else [])
    return [a.best is not None and next(seen) == a.problem.target for a in given]


def uvce_transfer(setting: Setting, n: int, rival: str) -> Estimate:
    """How much more often ResNet-56 predicts the target than for the rival's pictures, over the same questions."""
    own, other = transfers(setting, n, "none"), transfers(setting, n, rival)
    note = f"{100 * sum(own) / n:.1f} % against {100 * sum(other) / n:.1f} % for {rival}"
    return estimates.paired_difference(own, other, note)


ROWS = (
    Row("cifar10.vae_psnr", vae_psnr, 512, "dB", 24.0),
    Row("cifar10.prompt_class", prompt_class, 500, "%", 0.65),
    Row("cifar10.lcm_class", partial(prompt_class, overrides=("sampler=lcm",)), 500, "%"),
    Row("cifar10.uvce_flips", partial(uvce_flips, baseline="none"), 64, "%", 0.95),
    Row("cifar10.uvce_flips.start_only", partial(uvce_flips, baseline="start_only"), 64, "%"),
    Row("cifar10.uvce_flips.pixels", partial(uvce_flips, baseline="pixels"), 64, "%"),
    Row("cifar10.uvce_transfer", partial(uvce_transfer, rival="pixels"), 64, "%", 0.20, above=0.0),
    Row("cifar10.uvce_transfer.start_only", partial(uvce_transfer, rival="start_only"), 64, "%"),
)
