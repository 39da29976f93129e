"""Images that are objects of the caller's program: a Pillow image, a NumPy array or a tensor."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from classifier_lens.data.image_folder import DECODE_ERRORS, MIN_SIDE, to_rgb
from classifier_lens.runner.types import UserError, first_line

INTERPOLATION_OVERSHOOT = 0.2  # how far interpolation may lead out of [0, 1]
ROUNDING_TOLERANCE = 1e-5  # how far floating-point numbers may leave [0, 1] and still be meant to lie in it
CHANNELS = (1, 3, 4)  # of gray, RGB and RGBA images

_WANTED = "wanted is a Pillow image, or an array or tensor of uint8 or of floating-point numbers in [0, 1]"


def to_image_tensor(given: object, key: str = "image") -> Float[Tensor, "3 h w"]:
    """An image as RGB in [0, 1] at its own size.

    Of a Pillow image any mode whose range is known, turned as its EXIF orientation says. Of arrays and tensors: uint8
    is divided by 255, floating-point numbers lie in [0, 1]; (h, w, c) or (c, h, w), by which axis has 1, 3 or 4
    channels, or (h, w); a batch of one is its image. Gray is repeated, transparent parts are laid on white. Nothing is
    clipped. Raises UserError, naming `key`, for everything else and for sides below 16 pixels.
    """
    if isinstance(given, Image.Image):
        pixels = _of_pillow(given, key)
    elif isinstance(given, np.ndarray):
        pixels = _of_numpy(given, key)
    elif isinstance(given, Tensor):
        pixels = _of_torch(given, key)
    else:
        raise UserError(f"{key}: is of type {type(given).__name__}; {_WANTED}; a file is opened by PIL.Image.open")
    return _rgb(_channels_first(pixels, key)).contiguous()


def _of_pillow(given: Image.Image, key: str) -> Tensor:
    if given.mode == "I":
        raise UserError(f"{key}: a Pillow image of mode I, 32-bit integers whose range nothing tells; {_WANTED}")
    try:
        rgb = np.array(to_rgb(ImageOps.exif_transpose(given)))
    except DECODE_ERRORS as error:
        raise UserError(f"{key}: a Pillow image of mode {given.mode} cannot be read ({first_line(error)})") from error
    return torch.from_numpy(rgb).float() / 255


def _of_numpy(given: np.ndarray, key: str) -> Tensor:
    if given.dtype == np.uint8:
        return _of_bytes(torch.from_numpy(np.array(given)), key)
    if given.dtype.kind != "f":
        raise UserError(f"{key}: dtype {given.dtype}; {_WANTED}")
    return _of_numbers(torch.from_numpy(np.array(given, dtype=np.float32)), key)


def _of_torch(given: Tensor, key: str) -> Tensor:
    dense = given.layout == torch.strided and not given.is_meta and not given.is_nested
    if not dense or not (given.is_floating_point() or given.dtype == torch.uint8):
        raise UserError(f"{key}: {given.layout}, {given.dtype} on {given.device}; {_WANTED}")
    plain = given.detach().as_subclass(Tensor)
    if plain.dtype == torch.uint8:
        return _of_bytes(plain.cpu(), key)
    return _of_numbers(plain.to("cpu", torch.float32, copy=True), key)


def _of_bytes(pixels: Tensor, key: str) -> Tensor:
    """From 0..255 to [0, 1]."""
    if pixels.numel() and pixels.max() == 1:
        raise UserError(f"{key}: uint8 with no value above 1 of 255; give numbers in [0, 1] as floating point")
    return pixels.float() / 255


def _of_numbers(pixels: Tensor, key: str) -> Tensor:
    """The numbers themselves, if they lie in [0, 1]."""
    if not pixels.isfinite().all():
        raise UserError(f"{key}: {int((~pixels.isfinite()).sum())} of its values are NaN or infinite")
    if not pixels.numel():
        return pixels
    least, most = pixels.min().item(), pixels.max().item()
    if least < -ROUNDING_TOLERANCE or most > 1 + ROUNDING_TOLERANCE:
        raise UserError(f"{key}: floating-point values from {least:.6g} to {most:.6g}; {_remedy(least, most)}")
    return pixels.clamp(0, 1)  # of rounding alone


def _remedy(least: float, most: float) -> str:
    """What such a range usually comes from, and what makes [0, 1] of it."""
    if -INTERPOLATION_OVERSHOOT <= least and most <= 1 + INTERPOLATION_OVERSHOOT:
        return "allowed are 0 to 1: clip what resizing has led out of them, numpy.clip(image, 0, 1)"
    if least >= -ROUNDING_TOLERANCE and most <= 255:
        return "allowed are 0 to 1: divide values in 0..255 by 255, or give uint8"
    if least >= -1 - ROUNDING_TOLERANCE and most <= 1 + ROUNDING_TOLERANCE:
        return "allowed are 0 to 1: of values in [-1, 1] give (image + 1) / 2"
    return (
        "allowed are 0 to 1: give the image as it is before mean and std are applied, which the classifier does itself"
    )


def _channels_first(pixels: Tensor, key: str) -> Float[Tensor, "c h w"]:
    """One image's channels, rows and columns. Raises UserError where the shape does not tell them."""
    shape = tuple(pixels.shape)
    if pixels.ndim == 4:
        if len(pixels) != 1:
            raise UserError(f"{key}: shape {shape} is a batch of {len(pixels)}; call once for each image")
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3:
        raise UserError(f"{key}: shape {shape}; allowed are (height, width, channels) and (channels, height, width)")
    first, last = pixels.shape[0] in CHANNELS, pixels.shape[2] in CHANNELS
    if not first and not last:
        raise UserError(f"{key}: shape {shape}; one axis, the first or the last, has to be 1, 3 or 4 channels")
    image = pixels if first else pixels.permute(2, 0, 1)
    height, width = image.shape[1:]
    if min(height, width) < MIN_SIDE:
        raise UserError(f"{key}: shape {shape}; allowed are {MIN_SIDE} x {MIN_SIDE} pixels and larger")
    return image


def _rgb(image: Float[Tensor, "c h w"]) -> Float[Tensor, "3 h w"]:
    """Gray three times; what is transparent on white."""
    if len(image) == 4:
        return image[:3] * image[3:] + (1 - image[3:])
    return image.expand(3, -1, -1)
