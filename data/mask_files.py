"""Masks from files of the user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from classifier_lens.data.digests import hash_files, hash_values
from classifier_lens.runner.types import UserError

MAX_PIXEL_VALUE = {"1": 1, "L": 255, "I;16": 65535}  # by Pillow's mode


class FileSegmenter:
    """A segmenter that reads the files `<name of the image>.png` of a folder, see `read_mask`.

    digest: of all files. Raises UserError if the folder is missing.
    """

    needs_attention_map = False

    def __init__(self, path: str | None) -> None:
        if not path:
            raise UserError("segmenter.path is missing: give a folder of masks <name of the image>.png")
        self.folder = Path(path).expanduser()
        if not self.folder.is_dir():
            raise UserError(f"segmenter.path={path}: no such folder; expected one of masks <name of the image>.png")
        masks = sorted(self.folder.glob("*.png"))
        self.digest = hash_values([mask.name for mask in masks], hash_files(masks))

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        size = images.shape[-2], images.shape[-1]
        masks = [read_mask("segmenter.path", self.folder / f"{name}.png", size) for name in names]
        return torch.stack(masks).to(images)


def read_mask(key: str, path: str | Path, size: tuple[int, int]) -> Float[Tensor, "1 h w"]:
    """The mask of a gray PNG file: 1 where the value exceeds half of the maximum, else 0.

    Args:
        key: configuration key for errors.
        size: height and width of the image in pixels.

    Raises:
        UserError: the file is missing, not an image, not gray or of another size.
    """
    path = Path(path).expanduser()
    wanted = f"expected a gray PNG of {size[1]} x {size[0]} pixels, the size of its image"
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file; {wanted}")
    try:
        with Image.open(path, formats=["PNG"]) as file:
            file.verify()  # refuses a truncated file, which Pillow may be set to accept when it decodes
        with Image.open(path, formats=["PNG"]) as file:
            mode, pixels = file.mode, torch.from_numpy(np.array(file, dtype=np.float32))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{key}={path}: cannot be read; {wanted}") from error
    if mode not in MAX_PIXEL_VALUE:
        raise UserError(f"{key}={path}: its mode is {mode}; {wanted}, mode {', '.join(MAX_PIXEL_VALUE)}")
    if pixels.shape != size:
        raise UserError(f"{key}={path}: {pixels.shape[1]} x {pixels.shape[0]} pixels; {wanted}")
    return (pixels[None] / MAX_PIXEL_VALUE[mode] > 0.5).float()
