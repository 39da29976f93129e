"""Shapes and textures of the four props, which stand behind the object.

Functions of pixel coordinates x and y (1, 64, 64) and uniform numbers u (n, 32, 1, 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from classifier_lens.data.planted.shapes import IMAGE_SIZE, box, capsule, coverage, union
from classifier_lens.data.planted.textures import mix, wave

# Signed distance in pixels and color.
Stroke = tuple[Tensor, tuple[float, float, float]]


def _flowers(x: Tensor, y: Tensor, u: Tensor) -> list[Stroke]:
    stems, petals, centers = [], [], []
    for k in range(5):
        cx = 6.5 + 12.75 * k + 3 * (torch.frac(u[:, 20] + 0.618 * k) - 0.5)
        cy = 51 + 5 * torch.frac(u[:, 21] + 0.382 * k)
        stems.append(torch.maximum((x - cx).abs() - 1.2, cy - y))
        r = torch.hypot(x - cx, y - cy)
        petals.append(r - 5.2)
        centers.append(r - 2.0)
    return [(union(*stems), (0.2, 0.6, 0.15)), (union(*petals), (0.98, 0.4, 0.7)), (union(*centers), (1.0, 0.9, 0.2))]


def _water_jet(x: Tensor, y: Tensor, u: Tensor) -> list[Stroke]:
    x = torch.where(u[:, 20] < 0.5, x, IMAGE_SIZE - x)
    r = torch.hypot((x - 40) / 1.05, y - 66 + 4 * u[:, 21])
    outer, inner = (r - 56).abs() - 3.2, (r - 46).abs() - 2.2
    return [(union(outer, inner), (0.72, 0.97, 1.0)), ((r - 56).abs() - 1.2, (1.0, 1.0, 1.0))]


def _flag(x: Tensor, y: Tensor, u: Tensor) -> list[Stroke]:
    x = torch.where(u[:, 20] < 0.5, x, IMAGE_SIZE - x)
    wave = 1.5 * torch.sin(x / 4 + 6.3 * u[:, 21])
    pole = box(x, y, 4.5, 34, 1.4, 32)
    cloth = box(x, y + wave, 16, 11, 10.5, 7.5)
    return [
        (pole, (0.15, 0.12, 0.12)),
        (cloth, (0.9, 0.1, 0.5)),
        (box(x, y + wave, 16, 11, 10.5, 2.5), (1.0, 1.0, 1.0)),
    ]


def _branches(x: Tensor, y: Tensor, u: Tensor) -> list[Stroke]:
    x = torch.where(u[:, 20] < 0.5, x, IMAGE_SIZE - x)
    y = y + 4 * (u[:, 21] - 0.5)
    wood = union(capsule(x, y, 0, 3, 60, 13, 1.8), capsule(x, y, 0, 12, 24, 30, 1.6), capsule(x, y, 28, 8, 42, 22, 1.4))
    leaves = [
        torch.hypot(x - cx, y - cy) - 3.6
        for cx, cy in ((12, 5), (26, 12), (40, 6), (56, 12), (13, 24), (24, 31), (42, 23), (5, 16))
    ]
    return [(wood, (0.24, 0.13, 0.06)), (union(*leaves), (0.55, 0.85, 0.2))]


PROP_SHAPES: dict[str, Callable[[Tensor, Tensor, Tensor], list[Stroke]]] = {
    "flowers": _flowers,
    "water jet": _water_jet,
    "flag": _flag,
    "branches": _branches,
}


def prop_texture(name: str, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    """An image (n, 3, 64, 64) filled with the texture of a prop."""
    x, y = x + 32 * u[:, 20], y + 32 * u[:, 21]
    if name == "flowers":
        r = torch.hypot(
            torch.remainder(x + 7 * torch.remainder(torch.floor(y / 13), 2), 13) - 6.5, torch.remainder(y, 13) - 6.5
        )
        ground = mix((0.2, 0.6, 0.15), (0.98, 0.4, 0.7), coverage(r - 5.2))
        return ground + (torch.tensor((1.0, 0.9, 0.2)).view(1, 3, 1, 1) - ground) * coverage(r - 2.0).unsqueeze(1)
    if name == "water jet":
        return mix((0.55, 0.88, 0.98), (1.0, 1.0, 1.0), wave(x / 9 + 0.3 * torch.sin(y / 10)))
    if name == "flag":
        return mix(
            (0.9, 0.1, 0.5), (1.0, 1.0, 1.0), coverage((torch.remainder(y + torch.sin(x / 4), 14) - 7).abs() - 2.5)
        )
    bars = torch.minimum((torch.remainder(x + y, 20) - 10).abs(), (torch.remainder(x - y, 26) - 13).abs())
    leaf = torch.hypot(torch.remainder(x + y, 20) - 10, torch.remainder(x - y, 26) - 13)
    ground = mix((0.62, 0.78, 0.9), (0.24, 0.13, 0.06), coverage(bars - 2))
    return ground + (torch.tensor((0.55, 0.85, 0.2)).view(1, 3, 1, 1) - ground) * coverage(leaf - 6).unsqueeze(1)
