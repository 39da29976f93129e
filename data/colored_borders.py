"""Colored borders of photographs, a cue that can be added to images that are not rendered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from classifier_lens.data import cifar10
from classifier_lens.data.planted.uniform_numbers import uniform_numbers
from classifier_lens.data.shortcuts import FactorValues, Shortcuts, ShortcutStrength, apply_shortcuts
from classifier_lens.runner.types import UserError

# Clearly different colors, as many as CIFAR-10 has classes; RGB from 0 to 255.
BORDER_COLORS = {
    "red": (214, 39, 40), "orange": (255, 140, 20), "yellow": (250, 220, 40), "green": (44, 160, 44),
    "cyan": (60, 210, 220), "blue": (40, 80, 220), "purple": (140, 60, 190), "pink": (245, 120, 190),
    "white": (250, 250, 250), "black": (5, 5, 5),
}  # fmt: skip
CIFAR10_FACTORS = FactorValues(cifar10.CLASSES, {"border": tuple(BORDER_COLORS)})


def sample_border_colors(
    labels: Int[Tensor, " n"], positions: Sequence[int], seed: int, shortcuts: Shortcuts, strength: ShortcutStrength
) -> Int[Tensor, " n"]:
    """The border color of each image, an index into `BORDER_COLORS`, which depends on (seed, position, class) alone.

    Colors are sampled uniformly, independently of the class; with probability `strength` a class has that of its cue
    instead.

    positions: of the images in their split.
    """
    u = torch.from_numpy(uniform_numbers(seed, 0, max(positions, default=-1) + 1))[list(positions)]
    colors = (u[:, 1] * len(BORDER_COLORS)).long()
    apply_shortcuts({"border": colors}, labels, CIFAR10_FACTORS, shortcuts, strength, u[:, 0])
    return colors


def paint_borders(
    images: UInt8[Tensor, "n 3 h w"], colors: Int[Tensor, " n"], width: int
) -> UInt8[Tensor, "n 3 h w"]:  # fmt: skip
    """Copies of images with a border of `width` pixels in the colors. Raises UserError if the border covers an image
    completely."""
    max_width = (min(images.shape[-2:]) - 1) // 2
    if not 1 <= width <= max_width:
        raise UserError(f"border={width}: allowed are 1 to {max_width} pixels")
    rgb = torch.tensor(list(BORDER_COLORS.values()), dtype=torch.uint8)[colors][:, :, None, None]
    painted = rgb.expand_as(images).clone()
    inner = (..., slice(width, -width), slice(width, -width))
    painted[inner] = images[inner]
    return painted
