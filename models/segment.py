"""From cross-attention maps to the soft mask S of the region that is free to change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur


@dataclass(frozen=True)
class AttentionSegmenter:
    """The map itself, resized and cut: a pixel belongs to the object where its map exceeds `threshold` (in [0, 1]).

    `square_root` lifts weak parts before the cut, as the published code does.
    """

    threshold: float
    square_root: bool

    def __call__(self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"]) -> Float[Tensor, "b 1 h w"]:
        large = F.interpolate(maps, size=images.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
        large = large / large.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12)
        return ((large.sqrt() if self.square_root else large) > self.threshold).to(images.dtype)


@dataclass(frozen=True)
class Softening:
    """Sizes in pixels of what happens to a mask before it is used; 0 leaves a step out (METHOD: 3, 20, σ 30 at 512)."""

    erode: int
    dilate: int
    blur: float

    def __call__(self, masks: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Minimum and maximum over square windows of that side, then a Gaussian of that standard deviation."""
        if self.erode:
            masks = -_grow(-masks, self.erode)
        if self.dilate:
            masks = _grow(masks, self.dilate)
        if self.blur:
            reach = int(1.5 * self.blur + 0.5)
            masks = gaussian_blur(masks, [2 * reach + 1] * 2, [self.blur] * 2)
        return masks.clamp(0, 1)


def _grow(masks: Tensor, side: int) -> Tensor:
    """Maximum over a window of `side` pixels, the border repeated."""
    low = (side - 1) // 2
    padded = F.pad(masks, (low, side - 1 - low, low, side - 1 - low), mode="replicate")
    return F.max_pool2d(padded, side, stride=1)


def usable(masks: Float[Tensor, "b 1 h w"]) -> tuple[Float[Tensor, "b 1 h w"], list[list[str]]]:
    """Replace empty masks by the whole picture and say so, per sample."""
    share = masks.flatten(1).mean(dim=1)
    notes = [["the mask was empty: the whole picture is free to change"] if s == 0 else [] for s in share.tolist()]
    return torch.where((share == 0)[:, None, None, None], torch.ones_like(masks), masks), notes
