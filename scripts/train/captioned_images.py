"""Captioned images for the training of generators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from classifier_lens.data import cifar10, planted
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.types import indefinite_article


@dataclass(frozen=True)
class CaptionedImages:
    """Training images (n, 3, h, w) uint8, one caption each, and object masks (n, h, w) uint8 or None."""

    images: Tensor
    captions: list[str]
    masks: Tensor | None


def load_captioned_images(cfg: Any) -> CaptionedImages:
    """The training images of the data set `cfg.data`."""
    if cfg.data == "planted":
        images, masks, captions = [], [], []
        for start in range(0, cfg.images, 1000):
            scenes, text = planted.sample_captioned_scenes(
                min(1000, cfg.images - start), planted.SPLIT_SEEDS["train"] + cfg.seed, start
            )
            rendered = planted.render(scenes)
            images.append((rendered.image * 255).round().byte())
            masks.append((rendered.object_mask * 255).round().byte())
            captions += text
        return CaptionedImages(torch.cat(images), captions, torch.cat(masks))
    photographs, labels, _ = cifar10.read_split(ROOT / cfg.data_path, "train")
    order = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(cfg.seed))[: cfg.images]
    photographs = torch.cat([photographs[order], photographs[order].flip(-1)])
    return CaptionedImages(photographs, [cifar10_caption(int(c)) for c in labels[order]] * 2, None)


def cifar10_caption(label: int) -> str:
    """The caption of a photograph, which names its class alone."""
    name = cifar10.CLASSES[label]
    return f"a photograph of {indefinite_article(name)} {name}"
