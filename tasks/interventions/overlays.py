"""Overlays: changes of images that need no generator, such as a mark, a border or a blur.

Positions and lengths are shares of the image, so that an overlay looks the same at every size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Len, Lt
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms import functional as transforms

from classifier_lens.data.digests import hash_files
from classifier_lens.runner.configuration.value_ranges import (
    Color,
    Fraction,
    Fractions,
    OneOf,
    Positive,
    PositiveFraction,
)
from classifier_lens.runner.types import UserError, first_line
from classifier_lens.runner.user_code import describe_error, load_callable, source_files

# Images in [0, 1] "b 3 h w" to images of the same size; deterministic, and each image by itself.
Transform = Callable[[Tensor], Tensor]

BelowHalf = Annotated[float, Gt(0), Lt(0.5)]
Point = Annotated[Fractions, Len(2, 2)]  # x and y as shares of width and height
Turn = Annotated[float, Ge(-0.5), Le(0.5)]  # of the color wheel
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")
ANCHORS = ("la", "ra", "mm", "ld", "rd")  # Pillow's: left, middle or right; ascender, middle or descender
REFERENCE_SIDE = 224  # px; lengths in pixels are those for images of this side
MAX_EXCESS = 1e-4  # by which rounding may take values out of [0, 1]


@dataclass(frozen=True)
class Overlay:
    """A change of images.

    Attributes:
        phrase: what the changed images show, for sentences.
        transform: the change itself.
        is_control: whether a classifier is expected to ignore the change.
        is_damage: whether the whole image is damaged, such as by blur, rather than marked; a class that gains by it is
            no shortcut.
    """

    phrase: str
    transform: Transform
    is_control: bool = False
    is_damage: bool = False

    @property
    def digest(self) -> str:
        """Digest of the source files of a user's function, empty for other transforms, which the settings describe."""
        return self.transform.digest if isinstance(self.transform, UserFunction) else ""

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Changed copies of images in [0, 1].

        Raises:
            UserError: the transform returns anything but images in [0, 1] of the same size.
        """
        changed: Any = self.transform(images)
        key = f"overlay of {self.phrase}"
        if not isinstance(changed, Tensor) or changed.shape != images.shape:
            value = f"shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else f"a {type(changed).__name__}"
            raise UserError(f"{key}: returns {value}; expected images of shape {tuple(images.shape)}")
        if not ((changed >= -MAX_EXCESS) & (changed <= 1 + MAX_EXCESS)).all():
            raise UserError(f"{key}: returns values outside [0, 1]; expected images in [0, 1]")
        return changed.clamp(0, 1)


def text(
    images: Float[Tensor, "b 3 h w"],
    text: str,
    height: PositiveFraction,
    opacity: Fraction,
    color: Color,
    position: Point,
    anchor: Annotated[str, OneOf(ANCHORS)],
    font: str | None,
) -> Float[Tensor, "b 3 h w"]:
    """Images with a line of text.

    Args:
        height: size of the font as a share of the width, rounded down to whole pixels.
        position: of the text's anchor.
        anchor: the point of the text that is at `position`, one of `ANCHORS`.
        font: a font file, None for Pillow's, which has Latin letters.

    Raises:
        UserError: the font cannot be read, or has no glyph for a character.
    """
    rows, columns = images.shape[-2:]
    face = _read_font(font, max(1, int(height * columns)))
    if missing := _missing_characters(face, text):
        raise UserError(f"overlay.text={text}: the font {face.getname()[0]} has no {missing[0]}; set another font")
    canvas = Image.new("L", (columns, rows))
    ImageDraw.Draw(canvas).text((position[0] * columns, position[1] * rows), text, 255, face, anchor)
    coverage = torch.from_numpy(np.array(canvas)).float() / 255
    return _paint(images, color, opacity * coverage)


def border(images: Float[Tensor, "b 3 h w"], width: BelowHalf, color: Color) -> Float[Tensor, "b 3 h w"]:
    """Images with a border. width: as a share of the shorter side."""
    pixels = round(width * min(images.shape[-2:]))
    coverage = torch.ones(images.shape[-2:])
    coverage[pixels : images.shape[-2] - pixels, pixels : images.shape[-1] - pixels] = 0
    return _paint(images, color, coverage)


def corner_patch(
    images: Float[Tensor, "b 3 h w"], side: PositiveFraction, color: Color, corner: Annotated[str, OneOf(CORNERS)]
) -> Float[Tensor, "b 3 h w"]:
    """Images with a square in a corner. side: of the square, as a share of the shorter side of the image."""
    pixels = round(side * min(images.shape[-2:]))
    rows, columns = (slice(None, pixels) if first in corner else slice(-pixels, None) for first in ("top", "left"))
    coverage = torch.zeros(images.shape[-2:])
    coverage[rows, columns] = 1
    return _paint(images, color, coverage)


def gray(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images without colors."""
    return transforms.rgb_to_grayscale(images, num_output_channels=3)


def blur(images: Float[Tensor, "b 3 h w"], sigma: Positive) -> Float[Tensor, "b 3 h w"]:
    """Images with a Gaussian blur. sigma: its standard deviation in pixels, if the shorter side has 224."""
    side = min(images.shape[-2:])
    scaled = sigma * side / REFERENCE_SIDE
    radius = min(int(4 * scaled + 0.5), side - 1)
    return transforms.gaussian_blur(images, [2 * radius + 1] * 2, [scaled] * 2)


def hue_shift(images: Float[Tensor, "b 3 h w"], turn: Turn) -> Float[Tensor, "b 3 h w"]:
    """Images with all hues turned by a share of the color wheel."""
    return transforms.adjust_hue(images, turn)


def mirror(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images flipped horizontally."""
    return transforms.hflip(images)


@dataclass(frozen=True)
class UserFunction:
    """A user's function as a transform; key: configuration key and value for errors; digest: of its source files."""

    key: str
    function: Callable[[Tensor], Any]
    digest: str

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Any:
        """What the function returns. Raises UserError, with the file and line of the user's code, if it fails."""
        try:
            return self.function(images.clone())
        except Exception as error:  # the user's code may raise any exception
            raise UserError(f"{self.key}: {describe_error(error)}") from error


def user_function(target: str | Callable[[Tensor], Tensor]) -> UserFunction:
    """The user's function of images.

    Args:
        target: a function that maps images in [0, 1] (b, 3, h, w) to images of the same shape, or its name as
            `module:name` or `file.py:name`. A function without required arguments is called once and has to return
            such a function.

    Raises:
        UserError: with the file and line of the user's code, if that fails.
    """
    name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    key = f"overlay.function.transform.target={name}"
    function = load_callable(target, key)
    return UserFunction(key, function, hash_files(source_files(target)) if isinstance(target, str) else "")


def _paint(
    images: Float[Tensor, "b 3 h w"], color: Color, coverage: Float[Tensor, "h w"]
) -> Float[Tensor, "b 3 h w"]:  # fmt: skip
    """Images with a color on top. coverage: its opacity per pixel; where it is 0, images are unchanged."""
    opacity = coverage.to(images)
    return images * (1 - opacity) + images.new_tensor(color).view(3, 1, 1) * opacity


def _read_font(file: str | None, size: int) -> ImageFont.FreeTypeFont:
    """The font of a file, Pillow's for None. size: of the em square in pixels. Raises UserError if it cannot be
    read."""
    if file is None:
        builtin = ImageFont.load_default(size)
        assert isinstance(builtin, ImageFont.FreeTypeFont)
        return builtin
    try:
        return ImageFont.truetype(Path(file).expanduser(), size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise UserError(f"overlay.font={file}: {first_line(error)}; expected a TrueType or OpenType font") from error


def _missing_characters(font: ImageFont.FreeTypeFont, text: str) -> list[str]:
    """Characters that a font draws as the one that stands for unknown characters."""
    unknown = bytes(font.getmask("\uffff"))
    return [character for character in text if not character.isspace() and bytes(font.getmask(character)) == unknown]
