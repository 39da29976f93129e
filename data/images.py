"""Decoding and cropping of images."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps
from PIL import ImageFile as pillow_file
from torch import Tensor

from classifier_lens.runner.types import UnreadableImageError, UserError, first_line

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no other decoder is run, since some start other programs
MIN_SIDE = 16  # pixels
MAX_PIXELS = 178_000_000  # about 13,000 x 13,000, which take half a gigabyte while they are decoded
REDUCED_SIDE = 2048  # pixels; images with at least twice that on both sides are reduced to no less

EXPECTED_FILE = f"a complete image ({', '.join(suffix[1:] for suffix in SUFFIXES)})"
# Errors of Pillow for damaged files of all formats.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def center_crop(image: Float[Tensor, "3 h w"], side: int) -> Float[Tensor, "3 s s"]:
    """The central square with a side of `side` pixels."""
    height, width = image.shape[-2:]
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


def center_crop_resize(image: Float[Tensor, "3 h w"], side: int) -> Float[Tensor, "3 s s"]:
    """The largest central square of an image in [0, 1], resized to `side` pixels (bicubic, antialiased, clamped).

    A square of that size is not changed.
    """
    crop = center_crop(image, min(image.shape[-2:]))
    if crop.shape[-1] == side:
        return crop
    return F.interpolate(crop[None], size=(side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)


def read_image(path: str | Path) -> Float[Tensor, "3 h w"]:
    """The image of a file as RGB in [0, 1], rotated by its EXIF orientation; of an animation the first frame.

    The size is that of the file, unless both sides have 4096 pixels or more: such images are reduced by an integer
    factor to 2048 pixels or more. Transparent parts become white.

    Raises:
        UnreadableImageError: the file is missing, truncated, in none of `FORMATS`, smaller than 16 pixels on a side or
            larger than `MAX_PIXELS`.
    """
    key, file = _existing_file(path)
    return decode_image(key, file)


def check_image_file(path: str | Path) -> None:
    """Raises UnreadableImageError for a missing file and in the cases of `check_image_header`."""
    check_image_header(*_existing_file(path))


def _existing_file(path: str | Path) -> tuple[str, Path]:
    """The prefix of error messages, and the file. Raises UnreadableImageError if it does not exist."""
    path = Path(path).expanduser()
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "no such file"
        raise UnreadableImageError(f"data.path={path}: {reason}; expected {EXPECTED_FILE}")
    return f"data.path={path}", path


def decode_image(key: str, source: Path | bytes) -> Float[Tensor, "3 h w"]:
    """The image of a file or of its bytes, as in `read_image`; errors begin with `key`."""
    with _open_image(key, source) as file:
        ImageOps.exif_transpose(file, in_place=True)
        image = to_rgb(file)
    if (factor := min(image.size) // REDUCED_SIDE) > 1:
        image = image.reduce(factor)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def check_image_header(key: str, source: Path | bytes) -> None:
    """Raises UnreadableImageError, which begins with `key`, for a file that is missing, of another format, too small or
    too large. The image is not decoded."""
    with _open_image(key, source):
        pass


@contextmanager
def _open_image(key: str, source: Path | bytes) -> Iterator[Image.Image]:
    """An image of which only the header has been read. Raises UnreadableImageError, also for errors within the
    context."""
    content = BytesIO(source) if isinstance(source, bytes) else source
    try:
        with _pillow_strict(), Image.open(content, formats=FORMATS) as file:
            _check_size(key, file)
            _check_mode(file)
            yield file
    except DECODE_ERRORS as error:
        if isinstance(error, UserError):
            raise
        reason = first_line(error).replace(str(content), "the file")
        raise UnreadableImageError(f"{key}: cannot be read ({reason}); expected {EXPECTED_FILE}") from error


def _check_size(key: str, image: Image.Image) -> None:
    """Raises UnreadableImageError for an image that is too small or too large."""
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise UnreadableImageError(f"{key}: {width} x {height} pixels; allowed are {MIN_SIDE} x {MIN_SIDE} and larger")
    if width * height > MAX_PIXELS:
        allowed = f"up to {MAX_PIXELS // 1_000_000} million pixels"
        raise UnreadableImageError(f"{key}: {width} x {height} pixels; allowed are {allowed}")


@contextmanager
def _pillow_strict() -> Iterator[None]:
    """Within the context Pillow refuses truncated files, whatever other libraries have set, and does not warn about
    large images, which `MAX_PIXELS` limits."""
    previous = pillow_file.LOAD_TRUNCATED_IMAGES
    pillow_file.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        pillow_file.LOAD_TRUNCATED_IMAGES = previous


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image of any mode as 8-bit RGB: transparent parts become white, 16-bit gray is scaled to 8 bits.

    Raises ValueError if the range of the values is unknown.
    """
    _check_mode(image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()}; allowed are 0 to 65535")
        return Image.fromarray(np.divide(values, 257, dtype=np.float32).round().astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _check_mode(image: Image.Image) -> None:
    if image.mode == "F":
        raise ValueError("floating-point values of unknown range")
