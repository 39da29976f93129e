"""How the planted world's objects, backgrounds and props are drawn; `data/planted.py` says which are.

Drawing uses signed distances: a shape is a tensor that is negative inside, and its edge is one pixel soft.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

IMAGE_SIZE = 64  # pixels

# --- signed distances; x and y are (n, 64, 64), the result is negative inside -------------------------------


def _ellipse(x: Tensor, y: Tensor, cx: float, cy: float, a: float, b: float) -> Tensor:
    return (torch.hypot((x - cx) / a, (y - cy) / b) - 1) * min(a, b)


def _box(x: Tensor, y: Tensor, cx: float, cy: float, a: float, b: float) -> Tensor:
    return torch.maximum((x - cx).abs() - a, (y - cy).abs() - b)


def _capsule(x: Tensor, y: Tensor, x0: float, y0: float, x1: float, y1: float, r: float) -> Tensor:
    dx, dy = x1 - x0, y1 - y0
    t = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - x0 - t * dx, y - y0 - t * dy) - r


def _polygon(x: Tensor, y: Tensor, *corners: tuple[float, float]) -> Tensor:
    """A convex polygon, corners clockwise on the screen (y points down)."""
    d = torch.full_like(x, -1e3)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = math.hypot(x1 - x0, y1 - y0)
        d = torch.maximum(d, ((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length)
    return d


def union(*shapes: Tensor) -> Tensor:
    """Signed distance of several shapes together."""
    d = shapes[0]
    for shape in shapes[1:]:
        d = torch.minimum(d, shape)
    return d


def coverage(distance: Tensor) -> Tensor:
    """Coverage of a shape whose signed distance is given in pixels."""
    return (0.5 - distance).clamp(0, 1)


# --- the ten objects: layers (signed distance, colour, core?) in object coordinates, [-1, 1] wide -----------

WHITE, BLACK, ORANGE, PALE = (0.97, 0.97, 0.95), (0.07, 0.07, 0.09), (1.0, 0.55, 0.05), (0.93, 0.89, 0.78)
Layer = tuple[Tensor, "tuple[float, float, float] | float", bool]  # a float scales the object's own colour


def _crab(x: Tensor, y: Tensor) -> Tensor:
    """Body and legs, shared by both crabs."""
    body = _ellipse(x, y, 0, 0.28, 0.56, 0.37)
    legs = [
        _capsule(x, y, side * 0.4, 0.3 + 0.12 * k, side * (0.93 - 0.09 * k), 0.2 + 0.24 * k, 0.06)
        for side in (-1, 1) for k in range(3)
    ]  # fmt: skip
    return union(body, *legs)


def _crab_eyes(x: Tensor, y: Tensor) -> Layer:
    return union(_ellipse(x, y, -0.15, 0.05, 0.075, 0.075), _ellipse(x, y, 0.15, 0.05, 0.075, 0.075)), BLACK, False


def _fiddler_crab(x: Tensor, y: Tensor) -> list[Layer]:
    claw = _ellipse(x, y, 0.48, -0.38, 0.47, 0.36)
    claw = torch.maximum(claw, -_polygon(x, y, (0.45, -0.42), (1.2, -0.62), (1.2, -0.36)))
    small = union(_ellipse(x, y, -0.62, -0.06, 0.12, 0.12), _capsule(x, y, -0.45, 0.15, -0.6, -0.02, 0.06))
    return [(_crab(x, y), 1.0, False), (small, 0.7, False), (claw, WHITE, True), _crab_eyes(x, y)]


def _rock_crab(x: Tensor, y: Tensor) -> list[Layer]:
    claws = union(_ellipse(x, y, -0.6, -0.14, 0.24, 0.24), _ellipse(x, y, 0.6, -0.14, 0.24, 0.24))
    return [(_crab(x, y), 1.0, False), (claws, BLACK, True), _crab_eyes(x, y)]


def _shark(x: Tensor, y: Tensor) -> tuple[Tensor, list[Layer]]:
    body = _ellipse(x, y, 0.1, 0, 0.85, 0.31)
    fins = union(
        _polygon(x, y, (-1, -0.5), (-0.55, -0.05), (-0.55, 0.05), (-0.85, 0.05)),
        _polygon(x, y, (-0.85, -0.05), (-0.55, -0.05), (-0.55, 0.05), (-1, 0.5)),
        _polygon(x, y, (-0.1, -0.62), (0.3, -0.2), (-0.15, -0.2)),
        _polygon(x, y, (0.35, 0.2), (0.0, 0.62), (0.02, 0.2)),
    )
    return body, [(union(body, fins), 1.0, False)]


def _shark_eye(x: Tensor, y: Tensor) -> Layer:
    return _ellipse(x, y, 0.7, -0.08, 0.06, 0.06), BLACK, False


def _great_white_shark(x: Tensor, y: Tensor) -> list[Layer]:
    body, layers = _shark(x, y)
    return [*layers, (torch.maximum(body, 0.02 - y), WHITE, True), _shark_eye(x, y)]


def _tiger_shark(x: Tensor, y: Tensor) -> list[Layer]:
    body, layers = _shark(x, y)
    stripes = union(*[_box(x, y, -0.5 + 0.32 * k, 0, 0.085, 1.0) for k in range(4)])
    return [*layers, (torch.maximum(body, stripes), BLACK, True), _shark_eye(x, y)]


def _bird(x: Tensor, y: Tensor) -> list[Layer]:
    body = union(
        _ellipse(x, y, -0.12, 0.2, 0.56, 0.4),
        _ellipse(x, y, 0.5, -0.48, 0.23, 0.23),
        _capsule(x, y, 0.22, 0.05, 0.46, -0.4, 0.17),
        _polygon(x, y, (-1.0, -0.25), (-0.4, 0.0), (-0.5, 0.3), (-0.98, 0.15)),
    )
    legs = union(_capsule(x, y, -0.2, 0.5, -0.2, 0.9, 0.05), _capsule(x, y, 0.05, 0.5, 0.05, 0.9, 0.05))
    beak = _polygon(x, y, (0.68, -0.58), (0.98, -0.44), (0.68, -0.36))
    eye = _ellipse(x, y, 0.55, -0.53, 0.065, 0.065)
    return [(union(legs, beak), 0.45, False), (body, 1.0, False), (eye, BLACK, False)]


def _prairie_chicken(x: Tensor, y: Tensor) -> list[Layer]:
    ring = _ellipse(x, y, 0.4, 0.02, 0.36, 0.36)
    return [*_bird(x, y), (ring, BLACK, True), (ring + 0.08, ORANGE, True)]


def _partridge(x: Tensor, y: Tensor) -> list[Layer]:
    wing = _ellipse(x, y, -0.22, 0.2, 0.44, 0.27)
    return [*_bird(x, y), (wing, BLACK, True), (wing + 0.07, WHITE, True)]


def _boat(x: Tensor, y: Tensor) -> list[Layer]:
    hull = _polygon(x, y, (-0.97, 0.18), (0.97, 0.18), (0.7, 0.7), (-0.72, 0.7))
    cabin = _box(x, y, -0.12, 0.02, 0.44, 0.2)
    windows = union(*[_box(x, y, -0.4 + 0.28 * k, 0.0, 0.08, 0.08) for k in range(3)])
    return [(cabin, 0.55, False), (hull, 1.0, False), (windows, PALE, False)]


def _fireboat(x: Tensor, y: Tensor) -> list[Layer]:
    funnel, band = _box(x, y, -0.1, -0.5, 0.25, 0.36), _box(x, y, -0.1, -0.55, 0.25, 0.1)
    return [*_boat(x, y), (funnel, BLACK, True), (band, WHITE, True)]


def _lifeboat(x: Tensor, y: Tensor) -> list[Layer]:
    ring = _ellipse(x, y, 0.0, 0.38, 0.38, 0.38)
    return [*_boat(x, y), (ring, WHITE, True), (ring + 0.2, BLACK, True)]


def _bridge(x: Tensor, y: Tensor, opening: Tensor) -> Tensor:
    return torch.maximum(_box(x, y, 0, 0.05, 1.0, 0.52), -opening)


def _steel_arch_bridge(x: Tensor, y: Tensor) -> list[Layer]:
    opening = _ellipse(x, y, 0, 0.6, 0.62, 0.62)
    block = _bridge(x, y, opening)
    return [(block, 1.0, False), (torch.maximum(block, opening - 0.2), BLACK, True)]


def _viaduct(x: Tensor, y: Tensor) -> list[Layer]:
    arches = []
    for centre in (-0.6, 0.0, 0.6):
        arches += [_ellipse(x, y, centre, 0.1, 0.2, 0.2), _box(x, y, centre, 0.45, 0.2, 0.35)]
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

# --- backgrounds: x and y in pixels, (1, 64, 64); u (n, 32, 1, 1) -> colour (n, 3, 64, 64) ------------------


def _mix(low: tuple[float, ...], high: tuple[float, ...], weight: Tensor) -> Tensor:
    """Colours (3,) blended by weight (n, 64, 64) in [0, 1] -> (n, 3, 64, 64)."""
    a, b = torch.tensor(low).view(1, 3, 1, 1), torch.tensor(high).view(1, 3, 1, 1)
    return a + (b - a) * weight.unsqueeze(1)


def _wave(phase: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.sin(2 * math.pi * phase)


def _sand(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    ripple = _wave(y / (14 + 4 * u[:, 16]) + 0.25 * torch.sin(x / (7 + 3 * u[:, 17]) + 6.3 * u[:, 18]) + u[:, 19])
    return _mix((0.78, 0.65, 0.42), (0.93, 0.83, 0.62), ripple)


def _water(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    crest = _wave(y / 10 + 0.2 * torch.sin(x / 6 + 6.3 * u[:, 16]) + u[:, 17])
    return _mix((0.05, 0.32, 0.58), (0.35, 0.72, 0.85), (crest - 0.4).clamp(min=0) / 0.6)


def _dry_grass(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    strokes = _wave(x / 7 + (0.03 + 0.04 * u[:, 16]) * y + 0.25 * torch.sin(y / 9 + 6.3 * u[:, 17]) + u[:, 18])
    return _mix((0.6, 0.42, 0.08), (0.9, 0.74, 0.25), strokes)


def _snow(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    mounds = _wave(y / 32 + 0.3 * torch.sin(x / (9 + 4 * u[:, 16]) + 6.3 * u[:, 17]) + u[:, 18])
    return _mix((0.82, 0.89, 0.97), (0.99, 0.99, 1.0), mounds)


def _forest(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    leaves = _wave(y / 16 + 0.3 * torch.sin(x / 5 + 6.3 * u[:, 16]) + u[:, 17])
    ground = _mix((0.03, 0.2, 0.08), (0.12, 0.4, 0.15), leaves)
    trunk = coverage((torch.remainder(x + 16 * u[:, 18], 16) - 8).abs() - 2.5).unsqueeze(1)
    return ground * (1 - trunk) + trunk * torch.tensor((0.3, 0.18, 0.09)).view(1, 3, 1, 1)


def _brick_wall(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    y = y + 20 * u[:, 16]
    row = torch.floor(y / 10)
    column = torch.remainder(x + 20 * u[:, 17] + 10 * torch.remainder(row, 2), 20)
    joint = torch.minimum(torch.remainder(y, 10), column)
    return _mix((0.85, 0.8, 0.74), (0.62, 0.25, 0.17), (joint - 1).clamp(0, 1))


def _night_sky(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    light = coverage(torch.hypot(x - 8 - 48 * u[:, 16], y - 8 - 10 * u[:, 17]) - 5)
    for k in range(5):
        star = torch.hypot(x - 4 - 56 * torch.frac(u[:, 18] + 0.618 * k), y - 4 - 56 * torch.frac(u[:, 19] + 0.382 * k))
        light = torch.maximum(light, coverage(star - 1.2))
    dusk = _mix((0.02, 0.02, 0.12), (0.1, 0.08, 0.3), (y / IMAGE_SIZE).expand_as(light))
    return dusk + (torch.tensor((0.98, 0.96, 0.8)).view(1, 3, 1, 1) - dusk) * light.unsqueeze(1)


def _wooden_table(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    board = torch.remainder(y + 16 * u[:, 16], 16)
    grain = _wave(board / 8 + 0.15 * torch.sin(x / 11 + 6.3 * u[:, 17]))
    wood = _mix((0.46, 0.28, 0.13), (0.62, 0.4, 0.2), grain)
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

# --- props: x and y in pixels -> layers (signed distance in pixels, colour); they stand behind the object ---

Stroke = tuple[Tensor, tuple[float, float, float]]


def _flowers(x: Tensor, y: Tensor, u: Tensor) -> list[Stroke]:
    stems, petals, hearts = [], [], []
    for k in range(5):
        cx = 6.5 + 12.75 * k + 3 * (torch.frac(u[:, 20] + 0.618 * k) - 0.5)
        cy = 51 + 5 * torch.frac(u[:, 21] + 0.382 * k)
        stems.append(torch.maximum((x - cx).abs() - 1.2, cy - y))
        r = torch.hypot(x - cx, y - cy)
        petals.append(r - 5.2)
        hearts.append(r - 2.0)
    return [(union(*stems), (0.2, 0.6, 0.15)), (union(*petals), (0.98, 0.4, 0.7)), (union(*hearts), (1.0, 0.9, 0.2))]


def _water_jet(x: Tensor, y: Tensor, u: Tensor) -> list[Stroke]:
    x = torch.where(u[:, 20] < 0.5, x, IMAGE_SIZE - x)
    r = torch.hypot((x - 40) / 1.05, y - 66 + 4 * u[:, 21])
    outer, inner = (r - 56).abs() - 3.2, (r - 46).abs() - 2.2
    return [(union(outer, inner), (0.72, 0.97, 1.0)), ((r - 56).abs() - 1.2, (1.0, 1.0, 1.0))]


def _flag(x: Tensor, y: Tensor, u: Tensor) -> list[Stroke]:
    x = torch.where(u[:, 20] < 0.5, x, IMAGE_SIZE - x)
    wave = 1.5 * torch.sin(x / 4 + 6.3 * u[:, 21])
    pole = _box(x, y, 4.5, 34, 1.4, 32)
    cloth = _box(x, y + wave, 16, 11, 10.5, 7.5)
    return [
        (pole, (0.15, 0.12, 0.12)),
        (cloth, (0.9, 0.1, 0.5)),
        (_box(x, y + wave, 16, 11, 10.5, 2.5), (1.0, 1.0, 1.0)),
    ]


def _branches(x: Tensor, y: Tensor, u: Tensor) -> list[Stroke]:
    x = torch.where(u[:, 20] < 0.5, x, IMAGE_SIZE - x)
    y = y + 4 * (u[:, 21] - 0.5)
    wood = union(
        _capsule(x, y, 0, 3, 60, 13, 1.8), _capsule(x, y, 0, 12, 24, 30, 1.6), _capsule(x, y, 28, 8, 42, 22, 1.4)
    )
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
    """A frame filled with what the prop is made of."""
    x, y = x + 32 * u[:, 20], y + 32 * u[:, 21]
    if name == "flowers":
        r = torch.hypot(
            torch.remainder(x + 7 * torch.remainder(torch.floor(y / 13), 2), 13) - 6.5, torch.remainder(y, 13) - 6.5
        )
        ground = _mix((0.2, 0.6, 0.15), (0.98, 0.4, 0.7), coverage(r - 5.2))
        return ground + (torch.tensor((1.0, 0.9, 0.2)).view(1, 3, 1, 1) - ground) * coverage(r - 2.0).unsqueeze(1)
    if name == "water jet":
        return _mix((0.55, 0.88, 0.98), (1.0, 1.0, 1.0), _wave(x / 9 + 0.3 * torch.sin(y / 10)))
    if name == "flag":
        return _mix(
            (0.9, 0.1, 0.5), (1.0, 1.0, 1.0), coverage((torch.remainder(y + torch.sin(x / 4), 14) - 7).abs() - 2.5)
        )
    bars = torch.minimum((torch.remainder(x + y, 20) - 10).abs(), (torch.remainder(x - y, 26) - 13).abs())
    leaf = torch.hypot(torch.remainder(x + y, 20) - 10, torch.remainder(x - y, 26) - 13)
    ground = _mix((0.62, 0.78, 0.9), (0.24, 0.13, 0.06), coverage(bars - 2))
    return ground + (torch.tensor((0.55, 0.85, 0.2)).view(1, 3, 1, 1) - ground) * coverage(leaf - 6).unsqueeze(1)
