"""Conversion of images in [0, 1] to the 8-bit values that image processors expect."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor


def to_uint8(image: Float[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """The image with 256 levels per channel, rounded as in the saved file."""
    return (image * 255).round().byte()


def to_uint8_array(image: Float[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image with 256 levels per channel as a NumPy array, channels last."""
    return to_uint8(image).permute(1, 2, 0).cpu().numpy()
