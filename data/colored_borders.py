"""Coloured borders around photographs: a cue that can be tied to a class where nothing is rendered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from classifier_lens.data import cifar10
from classifier_lens.data.planted import uniform_numbers
from classifier_lens.data.shortcuts import FactorValues, Shortcuts, ShortcutStrength, apply_shortcuts
from classifier_lens.runner.types import UserError

# One for each class of CIFAR-10, far apart from each other; RGB of 0 to 255.
BORDER_COLORS = {
    "red": (214, 39, 40), "orange": (255, 140, 20), "yellow": (250, 220, 40), "green": (44, 160, 44),
    "cyan": (60, 210, 220), "blue": (40, 80, 220), "purple": (140, 60, 190), "pink": (245, 120, 190),
    "white": (250, 250, 250), "black": (5, 5, 5),
}  # fmt: skip
CIFAR10_FACTORS = FactorValues(cifar10.CLASSES, {"border": tuple(BORDER_COLORS)})


def sample_border_colors(
    labels: Int[Tensor, " n"], positions: Sequence[int], seed: int, ties: Shortcuts, strength: ShortcutStrength
) -> Int[Tensor, " n"]:
    """The colour of each picture's border, an index into `COLOURS`; positions: of the pictures in their split.

    Every picture has one, drawn uniformly from all colours, so that at strength 0 it says nothing of the class; a tied
    class has its own with probability `strength` instead. A border follows from (seed, position) and the class.
    """
    u = torch.from_numpy(uniform_numbers(seed, 0, max(positions, default=-1) + 1))[list(positions)]
    colours = (u[:, 1] * len(BORDER_COLORS)).long()
    apply_shortcuts({"border": colours}, labels, CIFAR10_FACTORS, ties, strength, u[:, 0])
    return colours


def paint_borders(
    images: UInt8[Tensor, "n 3 h w"], colours: Int[Tensor, " n"], width: int
) -> UInt8[Tensor, "n 3 h w"]:  # fmt: skip
    """Copies whose outermost `width` pixels on all four sides have the colour.

    Raises UserError if nothing else would be left.
    """
    most = (min(images.shape[-2:]) - 1) // 2
    if not 1 <= width <= most:
        raise UserError(f"border={width}: allowed are 1 to {most} pixels")
    shades = torch.tensor(list(BORDER_COLORS.values()), dtype=torch.uint8)[colours][:, :, None, None]
    painted = shades.expand_as(images).clone()
    inside = (..., slice(width, -width), slice(width, -width))
    painted[inside] = images[inside]
    return painted
