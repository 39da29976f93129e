"""Resizing and normalization of images for a classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

INTERPOLATIONS = ("bilinear", "bicubic")


def preprocess_images(
    images: Float[Tensor, "b 3 h w"], size: int, interpolation: str, mean: Tensor, std: Tensor
) -> Float[Tensor, "b 3 s s"]:
    """Images in [0, 1], resized to `size` pixels with antialiasing and without a crop, then normalized, in float32."""
    images = images.to(mean.device, torch.float32)
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode=interpolation, antialias=True)
    return (images - mean) / std
