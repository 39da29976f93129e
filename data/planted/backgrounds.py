"""Textures of the eight backgrounds.

Functions of pixel coordinates x and y (1, 64, 64) and uniform numbers u (n, 32, 1, 1), which return colors
(n, 3, 64, 64).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from classifier_lens.data.planted.shapes import IMAGE_SIZE, coverage
from classifier_lens.data.planted.textures import mix, wave


def _sand(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    ripple = wave(y / (14 + 4 * u[:, 16]) + 0.25 * torch.sin(x / (7 + 3 * u[:, 17]) + 6.3 * u[:, 18]) + u[:, 19])
    return mix((0.78, 0.65, 0.42), (0.93, 0.83, 0.62), ripple)


def _water(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    crest = wave(y / 10 + 0.2 * torch.sin(x / 6 + 6.3 * u[:, 16]) + u[:, 17])
    return mix((0.05, 0.32, 0.58), (0.35, 0.72, 0.85), (crest - 0.4).clamp(min=0) / 0.6)


def _dry_grass(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    strokes = wave(x / 7 + (0.03 + 0.04 * u[:, 16]) * y + 0.25 * torch.sin(y / 9 + 6.3 * u[:, 17]) + u[:, 18])
    return mix((0.6, 0.42, 0.08), (0.9, 0.74, 0.25), strokes)


def _snow(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    mounds = wave(y / 32 + 0.3 * torch.sin(x / (9 + 4 * u[:, 16]) + 6.3 * u[:, 17]) + u[:, 18])
    return mix((0.82, 0.89, 0.97), (0.99, 0.99, 1.0), mounds)


def _forest(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    leaves = wave(y / 16 + 0.3 * torch.sin(x / 5 + 6.3 * u[:, 16]) + u[:, 17])
    ground = mix((0.03, 0.2, 0.08), (0.12, 0.4, 0.15), leaves)
    trunk = coverage((torch.remainder(x + 16 * u[:, 18], 16) - 8).abs() - 2.5).unsqueeze(1)
    return ground * (1 - trunk) + trunk * torch.tensor((0.3, 0.18, 0.09)).view(1, 3, 1, 1)


def _brick_wall(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    y = y + 20 * u[:, 16]
    row = torch.floor(y / 10)
    column = torch.remainder(x + 20 * u[:, 17] + 10 * torch.remainder(row, 2), 20)
    joint = torch.minimum(torch.remainder(y, 10), column)
    return mix((0.85, 0.8, 0.74), (0.62, 0.25, 0.17), (joint - 1).clamp(0, 1))


def _night_sky(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    light = coverage(torch.hypot(x - 8 - 48 * u[:, 16], y - 8 - 10 * u[:, 17]) - 5)
    for k in range(5):
        star = torch.hypot(x - 4 - 56 * torch.frac(u[:, 18] + 0.618 * k), y - 4 - 56 * torch.frac(u[:, 19] + 0.382 * k))
        light = torch.maximum(light, coverage(star - 1.2))
    dusk = mix((0.02, 0.02, 0.12), (0.1, 0.08, 0.3), (y / IMAGE_SIZE).expand_as(light))
    return dusk + (torch.tensor((0.98, 0.96, 0.8)).view(1, 3, 1, 1) - dusk) * light.unsqueeze(1)


def _wooden_table(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    board = torch.remainder(y + 16 * u[:, 16], 16)
    grain = wave(board / 8 + 0.15 * torch.sin(x / 11 + 6.3 * u[:, 17]))
    wood = mix((0.46, 0.28, 0.13), (0.62, 0.4, 0.2), grain)
    return wood * (0.4 + 0.6 * (board - 0.5).clamp(0, 1).unsqueeze(1))


BACKGROUND_TEXTURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sand": _sand,
    "water": _water,
    "dry grass": _dry_grass,
    "snow": _snow,
    "forest": _forest,
    "brick wall": _brick_wall,
    "night sky": _night_sky,
    "wooden table": _wooden_table,
}
