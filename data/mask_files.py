"""Masks that somebody drew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from classifier_lens.data.image_selection import hash_files, hash_values
from classifier_lens.runner.types import UserError

MAX_PIXEL_VALUE = {"1": 1, "L": 255, "I;16": 65535}  # the largest value of a pixel, by Pillow's mode


class FileSegmenter:
    """Masks that somebody drew: the files `<name of the picture>.png` of one folder; see `read_mask`. digest: of all.

    Raises UserError if there is no such folder.
    """

    needs_attention_map = False

    def __init__(self, path: str | None) -> None:
        if not path:
            raise UserError("segmenter.path is missing: give a folder of masks <name of the picture>.png")
        self.folder = Path(path).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"segmenter.path={path}: no such folder; wanted are masks <name of the picture>.png in it")
        masks = sorted(self.folder.glob("*.png"))
        self.digest = hash_values([mask.name for mask in masks], hash_files(masks))

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        size = images.shape[-2], images.shape[-1]
        return torch.stack([read_mask("segmenter.path", self.folder / f"{name}.png", size) for name in names]).to(
            images
        )


def read_mask(key: str, path: str | Path, size: tuple[int, int]) -> Float[Tensor, "1 h w"]:
    """A mask of zeros and ones from a grey PNG: one where a pixel is brighter than half.

    key: the configuration's, for errors; size: rows and columns of the picture that it belongs to, in pixels.
    Raises UserError, in one line, if the file is missing, no picture, not grey or of another size.
    """
    path = Path(path).expanduser()
    wanted = f"wanted is a grey PNG of {size[1]} x {size[0]} pixels, as its picture has"
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file; {wanted}")
    try:
        with Image.open(path, formats=["PNG"]) as file:
            file.verify()  # refuses a truncated file, which other libraries tell Pillow to tolerate when it decodes
        with Image.open(path, formats=["PNG"]) as file:
            mode, pixels = file.mode, torch.from_numpy(np.array(file, dtype=np.float32))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{key}={path}: cannot be read; {wanted}") from error
    if mode not in MAX_PIXEL_VALUE:
        raise UserError(f"{key}={path}: its mode is {mode}; {wanted}, mode {', '.join(MAX_PIXEL_VALUE)}")
    if pixels.shape != size:
        raise UserError(f"{key}={path}: {pixels.shape[1]} x {pixels.shape[0]} pixels; {wanted}")
    return (pixels[None] / MAX_PIXEL_VALUE[mode] > 0.5).float()
