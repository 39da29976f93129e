"""Signed distances of plane shapes: tensors that are negative inside the shape.

Coordinates x and y are broadcastable tensors, such as (n, 64, 64).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

IMAGE_SIZE = 64  # pixels


def ellipse(x: Tensor, y: Tensor, cx: float, cy: float, a: float, b: float) -> Tensor:
    """An ellipse with center (cx, cy) and semi-axes a and b."""
    return (torch.hypot((x - cx) / a, (y - cy) / b) - 1) * min(a, b)


def box(x: Tensor, y: Tensor, cx: float, cy: float, a: float, b: float) -> Tensor:
    """A rectangle with center (cx, cy), width 2a and height 2b."""
    return torch.maximum((x - cx).abs() - a, (y - cy).abs() - b)


def capsule(x: Tensor, y: Tensor, x0: float, y0: float, x1: float, y1: float, r: float) -> Tensor:
    """The points within r of the segment from (x0, y0) to (x1, y1)."""
    dx, dy = x1 - x0, y1 - y0
    t = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - x0 - t * dx, y - y0 - t * dy) - r


def polygon(x: Tensor, y: Tensor, *corners: tuple[float, float]) -> Tensor:
    """A convex polygon with its corners in clockwise order, where y points down."""
    distance = torch.full_like(x, -1e3)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = math.hypot(x1 - x0, y1 - y0)
        distance = torch.maximum(distance, ((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length)
    return distance


def union(*distances: Tensor) -> Tensor:
    """The union of several shapes."""
    distance = distances[0]
    for other in distances[1:]:
        distance = torch.minimum(distance, other)
    return distance


def coverage(distance: Tensor) -> Tensor:
    """The covered part of each pixel, in [0, 1], by a shape whose signed distance is in pixels: edges are 1 pixel
    soft."""
    return (0.5 - distance).clamp(0, 1)
