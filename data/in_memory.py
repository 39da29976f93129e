"""Conversion of Pillow images, NumPy arrays and tensors to images in [0, 1]."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from classifier_lens.data.images import DECODE_ERRORS, MIN_SIDE, to_rgb
from classifier_lens.runner.types import UserError, first_line

INTERPOLATION_OVERSHOOT = 0.2  # interpolation may exceed [0, 1] by that much
ROUNDING_TOLERANCE = 1e-5  # rounding may exceed [0, 1] by that much
CHANNELS = (1, 3, 4)  # of gray, RGB and RGBA images

_EXPECTED = "expected a Pillow image, or an array or tensor of uint8 or of floating-point numbers in [0, 1]"


def to_image_tensor(image: object, key: str = "image") -> Float[Tensor, "3 h w"]:
    """An image as RGB in [0, 1] at its own size; gray is repeated, transparent parts become white.

    Args:
        image: a Pillow image of any mode with a known range, which is rotated by its EXIF orientation; or an array or
            tensor of uint8, which is divided by 255, or of floating-point numbers in [0, 1]. Arrays and tensors are
            (h, w, c) or (c, h, w), where c is 1, 3 or 4, or (h, w), or a batch of one.
        key: prefix of error messages.

    Raises:
        UserError: other types, values or shapes, and sides below 16 pixels.
    """
    if isinstance(image, Image.Image):
        pixels = _from_pillow(image, key)
    elif isinstance(image, np.ndarray):
        pixels = _from_numpy(image, key)
    elif isinstance(image, Tensor):
        pixels = _from_torch(image, key)
    else:
        raise UserError(f"{key}: is of type {type(image).__name__}; {_EXPECTED}; PIL.Image.open opens a file")
    return _to_rgb(_channels_first(pixels, key)).contiguous()


def _from_pillow(image: Image.Image, key: str) -> Tensor:
    if image.mode == "I":
        raise UserError(f"{key}: a Pillow image of mode I, 32-bit integers of unknown range; {_EXPECTED}")
    try:
        rgb = np.array(to_rgb(ImageOps.exif_transpose(image)))
    except DECODE_ERRORS as error:
        raise UserError(f"{key}: a Pillow image of mode {image.mode} cannot be read ({first_line(error)})") from error
    return torch.from_numpy(rgb).float() / 255


def _from_numpy(image: np.ndarray, key: str) -> Tensor:
    if image.dtype == np.uint8:
        return _from_uint8(torch.from_numpy(np.array(image)), key)
    if image.dtype.kind != "f":
        raise UserError(f"{key}: dtype {image.dtype}; {_EXPECTED}")
    return _from_float(torch.from_numpy(np.array(image, dtype=np.float32)), key)


def _from_torch(image: Tensor, key: str) -> Tensor:
    is_dense = image.layout == torch.strided and not image.is_meta and not image.is_nested
    if not is_dense or not (image.is_floating_point() or image.dtype == torch.uint8):
        raise UserError(f"{key}: {image.layout}, {image.dtype} on {image.device}; {_EXPECTED}")
    plain = image.detach().as_subclass(Tensor)
    if plain.dtype == torch.uint8:
        return _from_uint8(plain.cpu(), key)
    return _from_float(plain.to("cpu", torch.float32, copy=True), key)


def _from_uint8(pixels: Tensor, key: str) -> Tensor:
    """Values in 0..255 divided by 255. Raises UserError if the maximum is 1."""
    if pixels.numel() and pixels.max() == 1:
        raise UserError(f"{key}: uint8 with no value above 1 of 255; give numbers in [0, 1] as floating point")
    return pixels.float() / 255


def _from_float(pixels: Tensor, key: str) -> Tensor:
    """The values themselves, without rounding errors outside [0, 1]. Raises UserError for other values outside."""
    if not pixels.isfinite().all():
        raise UserError(f"{key}: {int((~pixels.isfinite()).sum())} of its values are NaN or infinite")
    if not pixels.numel():
        return pixels
    minimum, maximum = pixels.min().item(), pixels.max().item()
    if minimum < -ROUNDING_TOLERANCE or maximum > 1 + ROUNDING_TOLERANCE:
        raise UserError(
            f"{key}: floating-point values from {minimum:.6g} to {maximum:.6g}; {_range_advice(minimum, maximum)}"
        )
    return pixels.clamp(0, 1)


def _range_advice(minimum: float, maximum: float) -> str:
    """The conversion to [0, 1], by the usual cause of a range."""
    if -INTERPOLATION_OVERSHOOT <= minimum and maximum <= 1 + INTERPOLATION_OVERSHOOT:
        return "allowed are 0 to 1: clip the overshoot of resizing, numpy.clip(image, 0, 1)"
    if minimum >= -ROUNDING_TOLERANCE and maximum <= 255:
        return "allowed are 0 to 1: divide values in 0..255 by 255, or give uint8"
    if minimum >= -1 - ROUNDING_TOLERANCE and maximum <= 1 + ROUNDING_TOLERANCE:
        return "allowed are 0 to 1: for values in [-1, 1] give (image + 1) / 2"
    return "allowed are 0 to 1: give the image before normalization, which the classifier does itself"


def _channels_first(pixels: Tensor, key: str) -> Float[Tensor, "c h w"]:
    """A single image with the channels first. Raises UserError for an ambiguous shape."""
    shape = tuple(pixels.shape)
    if pixels.ndim == 4:
        if len(pixels) != 1:
            raise UserError(f"{key}: shape {shape} is a batch of {len(pixels)}; call once for each image")
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3:
        raise UserError(f"{key}: shape {shape}; allowed are (height, width, channels) and (channels, height, width)")
    is_first, is_last = pixels.shape[0] in CHANNELS, pixels.shape[2] in CHANNELS
    if not is_first and not is_last:
        raise UserError(f"{key}: shape {shape}; one axis, the first or the last, has to be 1, 3 or 4 channels")
    image = pixels if is_first else pixels.permute(2, 0, 1)
    height, width = image.shape[1:]
    if min(height, width) < MIN_SIDE:
        raise UserError(f"{key}: shape {shape}; allowed are {MIN_SIDE} x {MIN_SIDE} pixels and larger")
    return image


def _to_rgb(image: Float[Tensor, "c h w"]) -> Float[Tensor, "3 h w"]:
    """Gray repeated, transparent parts on white."""
    if len(image) == 4:
        return image[:3] * image[3:] + (1 - image[3:])
    return image.expand(3, -1, -1)
