"""Shapes of the ten classes as layers in object coordinates, in which an object is 2 wide and centered at 0."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from classifier_lens.data.planted.shapes import box, capsule, ellipse, polygon, union

WHITE, BLACK, ORANGE, PALE = (0.97, 0.97, 0.95), (0.07, 0.07, 0.09), (1.0, 0.55, 0.05), (0.93, 0.89, 0.78)

# Signed distance; color, or a factor of the color of the object; whether the layer distinguishes the class from the
# other one of the pair.
Layer = tuple[Tensor, "tuple[float, float, float] | float", bool]


def _crab(x: Tensor, y: Tensor) -> Tensor:
    """Body and legs of both crabs."""
    body = ellipse(x, y, 0, 0.28, 0.56, 0.37)
    legs = [
        capsule(x, y, side * 0.4, 0.3 + 0.12 * k, side * (0.93 - 0.09 * k), 0.2 + 0.24 * k, 0.06)
        for side in (-1, 1) for k in range(3)
    ]  # fmt: skip
    return union(body, *legs)


def _crab_eyes(x: Tensor, y: Tensor) -> Layer:
    return union(ellipse(x, y, -0.15, 0.05, 0.075, 0.075), ellipse(x, y, 0.15, 0.05, 0.075, 0.075)), BLACK, False


def _fiddler_crab(x: Tensor, y: Tensor) -> list[Layer]:
    claw = ellipse(x, y, 0.48, -0.38, 0.47, 0.36)
    claw = torch.maximum(claw, -polygon(x, y, (0.45, -0.42), (1.2, -0.62), (1.2, -0.36)))
    small = union(ellipse(x, y, -0.62, -0.06, 0.12, 0.12), capsule(x, y, -0.45, 0.15, -0.6, -0.02, 0.06))
    return [(_crab(x, y), 1.0, False), (small, 0.7, False), (claw, WHITE, True), _crab_eyes(x, y)]


def _rock_crab(x: Tensor, y: Tensor) -> list[Layer]:
    claws = union(ellipse(x, y, -0.6, -0.14, 0.24, 0.24), ellipse(x, y, 0.6, -0.14, 0.24, 0.24))
    return [(_crab(x, y), 1.0, False), (claws, BLACK, True), _crab_eyes(x, y)]


def _shark(x: Tensor, y: Tensor) -> tuple[Tensor, list[Layer]]:
    body = ellipse(x, y, 0.1, 0, 0.85, 0.31)
    fins = union(
        polygon(x, y, (-1, -0.5), (-0.55, -0.05), (-0.55, 0.05), (-0.85, 0.05)),
        polygon(x, y, (-0.85, -0.05), (-0.55, -0.05), (-0.55, 0.05), (-1, 0.5)),
        polygon(x, y, (-0.1, -0.62), (0.3, -0.2), (-0.15, -0.2)),
        polygon(x, y, (0.35, 0.2), (0.0, 0.62), (0.02, 0.2)),
    )
    return body, [(union(body, fins), 1.0, False)]


def _shark_eye(x: Tensor, y: Tensor) -> Layer:
    return ellipse(x, y, 0.7, -0.08, 0.06, 0.06), BLACK, False


def _great_white_shark(x: Tensor, y: Tensor) -> list[Layer]:
    body, layers = _shark(x, y)
    return [*layers, (torch.maximum(body, 0.02 - y), WHITE, True), _shark_eye(x, y)]


def _tiger_shark(x: Tensor, y: Tensor) -> list[Layer]:
    body, layers = _shark(x, y)
    stripes = union(*[box(x, y, -0.5 + 0.32 * k, 0, 0.085, 1.0) for k in range(4)])
    return [*layers, (torch.maximum(body, stripes), BLACK, True), _shark_eye(x, y)]


def _bird(x: Tensor, y: Tensor) -> list[Layer]:
    body = union(
        ellipse(x, y, -0.12, 0.2, 0.56, 0.4),
        ellipse(x, y, 0.5, -0.48, 0.23, 0.23),
        capsule(x, y, 0.22, 0.05, 0.46, -0.4, 0.17),
        polygon(x, y, (-1.0, -0.25), (-0.4, 0.0), (-0.5, 0.3), (-0.98, 0.15)),
    )
    legs = union(capsule(x, y, -0.2, 0.5, -0.2, 0.9, 0.05), capsule(x, y, 0.05, 0.5, 0.05, 0.9, 0.05))
    beak = polygon(x, y, (0.68, -0.58), (0.98, -0.44), (0.68, -0.36))
    eye = ellipse(x, y, 0.55, -0.53, 0.065, 0.065)
    return [(union(legs, beak), 0.45, False), (body, 1.0, False), (eye, BLACK, False)]


def _prairie_chicken(x: Tensor, y: Tensor) -> list[Layer]:
    ring = ellipse(x, y, 0.4, 0.02, 0.36, 0.36)
    return [*_bird(x, y), (ring, BLACK, True), (ring + 0.08, ORANGE, True)]


def _partridge(x: Tensor, y: Tensor) -> list[Layer]:
    wing = ellipse(x, y, -0.22, 0.2, 0.44, 0.27)
    return [*_bird(x, y), (wing, BLACK, True), (wing + 0.07, WHITE, True)]


def _boat(x: Tensor, y: Tensor) -> list[Layer]:
    hull = polygon(x, y, (-0.97, 0.18), (0.97, 0.18), (0.7, 0.7), (-0.72, 0.7))
    cabin = box(x, y, -0.12, 0.02, 0.44, 0.2)
    windows = union(*[box(x, y, -0.4 + 0.28 * k, 0.0, 0.08, 0.08) for k in range(3)])
    return [(cabin, 0.55, False), (hull, 1.0, False), (windows, PALE, False)]


def _fireboat(x: Tensor, y: Tensor) -> list[Layer]:
    funnel, band = box(x, y, -0.1, -0.5, 0.25, 0.36), box(x, y, -0.1, -0.55, 0.25, 0.1)
    return [*_boat(x, y), (funnel, BLACK, True), (band, WHITE, True)]


def _lifeboat(x: Tensor, y: Tensor) -> list[Layer]:
    ring = ellipse(x, y, 0.0, 0.38, 0.38, 0.38)
    return [*_boat(x, y), (ring, WHITE, True), (ring + 0.2, BLACK, True)]


def _bridge(x: Tensor, y: Tensor, opening: Tensor) -> Tensor:
    return torch.maximum(box(x, y, 0, 0.05, 1.0, 0.52), -opening)


def _steel_arch_bridge(x: Tensor, y: Tensor) -> list[Layer]:
    opening = ellipse(x, y, 0, 0.6, 0.62, 0.62)
    block = _bridge(x, y, opening)
    return [(block, 1.0, False), (torch.maximum(block, opening - 0.2), BLACK, True)]


def _viaduct(x: Tensor, y: Tensor) -> list[Layer]:
    arches = []
    for center in (-0.6, 0.0, 0.6):
        arches += [ellipse(x, y, center, 0.1, 0.2, 0.2), box(x, y, center, 0.45, 0.2, 0.35)]
    block = _bridge(x, y, union(*arches))
    return [(block, 1.0, False), (torch.maximum(block, 0.05 - y), PALE, True)]


OBJECT_SHAPES: dict[str, Callable[[Tensor, Tensor], list[Layer]]] = {
    "fiddler crab": _fiddler_crab,
    "rock crab": _rock_crab,
    "great white shark": _great_white_shark,
    "tiger shark": _tiger_shark,
    "prairie chicken": _prairie_chicken,
    "partridge": _partridge,
    "fireboat": _fireboat,
    "lifeboat": _lifeboat,
    "steel arch bridge": _steel_arch_bridge,
    "viaduct": _viaduct,
}
