"""Rendering of scenes as images with masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from classifier_lens.data.planted.backgrounds import BACKGROUND_TEXTURES
from classifier_lens.data.planted.factors import BACKGROUNDS, CLASSES, IMAGE_KINDS, PROPS, SceneFactors
from classifier_lens.data.planted.objects import OBJECT_SHAPES
from classifier_lens.data.planted.props import PROP_SHAPES, prop_texture
from classifier_lens.data.planted.shapes import IMAGE_SIZE, coverage, union


@dataclass(frozen=True)
class Rendering:
    """Images and masks of a batch of scenes, in [0, 1].

    Args:
        image: (n, 3, 64, 64).
        object_mask: the visible object, (n, 64, 64).
        core_mask: the part of the object that distinguishes the two classes of a pair, (n, 64, 64).
        prop_mask: the visible prop, (n, 64, 64).
    """

    image: Tensor
    object_mask: Tensor
    core_mask: Tensor
    prop_mask: Tensor


@dataclass
class _Canvas:
    """The images and masks of a batch while it is rendered; pixel coordinates x and y are (1, 64, 64)."""

    scenes: SceneFactors
    x: Tensor
    y: Tensor
    image: Tensor
    object_mask: Tensor
    core_mask: Tensor
    prop_mask: Tensor

    def rows(self, factor: Tensor, index: int, *kinds: str) -> Tensor:
        """The positions of scenes of some kinds in which a factor has a value."""
        kind_indices = torch.tensor([IMAGE_KINDS.index(kind) for kind in kinds])
        return ((factor == index) & torch.isin(self.scenes.kind, kind_indices)).nonzero()[:, 0]

    def u(self, rows: Tensor) -> Tensor:
        """The uniform numbers of some scenes, (n, 32, 1, 1)."""
        return self.scenes.u[rows][:, :, None, None]


def render(scenes: SceneFactors) -> Rendering:
    """The images and masks of scenes. The image of a scene does not depend on the batch."""
    n = len(scenes)
    y, x = torch.meshgrid(torch.arange(IMAGE_SIZE) + 0.5, torch.arange(IMAGE_SIZE) + 0.5, indexing="ij")
    image = torch.full((n, 3, IMAGE_SIZE, IMAGE_SIZE), 0.92)  # the background of the kind "shape"
    masks = [torch.zeros(n, IMAGE_SIZE, IMAGE_SIZE) for _ in range(3)]
    canvas = _Canvas(scenes, x[None], y[None], image, *masks)
    _draw_backgrounds(canvas)
    _draw_props(canvas)
    _draw_objects(canvas)
    return Rendering(canvas.image.clamp(0, 1), canvas.object_mask, canvas.core_mask, canvas.prop_mask)


def _draw_backgrounds(canvas: _Canvas) -> None:
    for i, name in enumerate(BACKGROUNDS):
        rows = canvas.rows(canvas.scenes.background, i, "object", "background", "prop", "background texture")
        if len(rows):
            canvas.image[rows] = BACKGROUND_TEXTURES[name](canvas.x, canvas.y, canvas.u(rows))


def _draw_props(canvas: _Canvas) -> None:
    for i, name in enumerate(PROPS):
        rows = canvas.rows(canvas.scenes.prop, i, "object", "prop")
        if len(rows):
            for distance, color in PROP_SHAPES[name](canvas.x, canvas.y, canvas.u(rows)):
                covered = coverage(distance).expand(len(rows), IMAGE_SIZE, IMAGE_SIZE)
                canvas.image[rows] = _paint(canvas.image[rows], covered, torch.tensor(color).view(1, 3, 1, 1))
                canvas.prop_mask[rows] = torch.maximum(canvas.prop_mask[rows], covered)
        rows = canvas.rows(canvas.scenes.prop, i, "prop texture")
        if len(rows):
            canvas.image[rows] = prop_texture(name, canvas.x, canvas.y, canvas.u(rows))
            canvas.prop_mask[rows] = 1.0


def _draw_objects(canvas: _Canvas) -> None:
    for i, name in enumerate(CLASSES):
        rows = canvas.rows(canvas.scenes.label, i, "object", "shape")
        if len(rows):
            _draw_object(canvas, name, rows)


def _draw_object(canvas: _Canvas, name: str, rows: Tensor) -> None:
    """Draw the object of one class with a dark rim of 1 pixel, or its silhouette, in some scenes."""
    scenes = canvas.scenes[rows]
    ox, oy, scale = _object_coordinates(scenes.u, canvas.x, canvas.y)
    object_color = _object_color(scenes.hue, scenes.u)[:, :, None, None]
    layers = OBJECT_SHAPES[name](ox, oy)
    outline = union(*[distance for distance, _, _ in layers]) * scale
    covered, covered_with_rim = coverage(outline), coverage(outline - 1.0)
    image = _paint(canvas.image[rows], covered_with_rim, object_color * 0.3)
    core = torch.zeros_like(covered)
    for distance, fill, is_core in layers:
        part = coverage(distance * scale)
        color = object_color * fill if isinstance(fill, float) else torch.tensor(fill).view(1, 3, 1, 1)
        image = _paint(image, part, color * (1.0 - 0.12 * oy.unsqueeze(1)).clamp(max=1.05))
        core = torch.maximum(core, part) if is_core else core * (1 - part)
    is_shape = (scenes.kind == IMAGE_KINDS.index("shape"))[:, None, None, None]
    canvas.image[rows] = torch.where(is_shape, _paint(canvas.image[rows], covered, torch.tensor(0.15)), image)
    canvas.object_mask[rows], canvas.core_mask[rows] = covered_with_rim, core * covered
    canvas.prop_mask[rows] = canvas.prop_mask[rows] * (1 - covered_with_rim)


def _object_color(hue: Tensor, u: Tensor) -> Tensor:
    """RGB colors (n, 3) for indices of hues (n,), with small random variations of hue and value by u (n, 32)."""
    angle = torch.tensor((0.0, 0.145, 0.36, 0.6, 0.79, 0.0))[hue] + 0.025 * (u[:, 10] - 0.5)
    saturation = torch.tensor((0.85, 0.85, 0.75, 0.8, 0.65, 0.0))[hue]
    value = torch.tensor((0.8, 0.92, 0.68, 0.85, 0.72, 0.55))[hue] + 0.1 * (u[:, 11] - 0.5)
    shift = torch.stack([(angle + k) % 1.0 for k in (1.0, 2 / 3, 1 / 3)], dim=1)
    return value[:, None] * (1 - saturation[:, None] * (1 - ((shift * 6 - 3).abs() - 1).clamp(0, 1)))


def _object_coordinates(u: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Object coordinates x and y (n, 64, 64) of all pixels, and pixels per unit (n, 1, 1), for u (n, 32)."""
    u = u[:, :, None, None]
    side = IMAGE_SIZE * (0.52 + 0.18 * u[:, 12])
    cx = side / 2 + (IMAGE_SIZE - side) * u[:, 13]
    cy = 0.42 * side + (IMAGE_SIZE - 0.84 * side) * u[:, 14]
    angle = (u[:, 15] - 0.5) * 0.28
    dx, dy = (x - cx) / (side / 2), (y - cy) / (side / 2)
    ox, oy = dx * torch.cos(angle) + dy * torch.sin(angle), dy * torch.cos(angle) - dx * torch.sin(angle)
    return torch.where(u[:, 22] < 0.5, ox, -ox), oy, side / 2


def _paint(canvas: Tensor, coverage: Tensor, color: Tensor) -> Tensor:
    """The canvas (n, 3, 64, 64) painted with a color, broadcastable to it, by the coverage (n, 64, 64) in [0, 1]."""
    return canvas + (color - canvas) * coverage.unsqueeze(1)
