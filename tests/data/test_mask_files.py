"""Masks from files: selection by name, two values, refusal in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from classifier_lens.data.mask_files import FileSegmenter, read_mask
from classifier_lens.runner.protocols import Segmenter
from classifier_lens.runner.types import UserError


def save(path: Path, pixels: list[list[int]], kind: str = "uint8") -> Path:
    Image.fromarray(np.array(pixels, dtype=kind)).save(path)
    return path


def test_masks_are_read_by_the_name_of_the_image(tmp_path: Path) -> None:
    save(tmp_path / "a.png", [[0, 255, 255], [0, 0, 0]])
    save(tmp_path / "b-2.png", [[0, 0, 0], [255, 0, 0]])
    segmenter: Segmenter = FileSegmenter(str(tmp_path))
    images, maps = torch.zeros(2, 3, 2, 3), torch.rand(2, 1, 4, 4)
    a, b = [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert segmenter(images, maps, ["crab"] * 2, ["a", "b-2"]).tolist() == [[a], [b]]
    assert segmenter(images, maps, ["crab"] * 2, ["b-2", "a"]).tolist() == [[b], [a]]
    with pytest.raises(UserError, match="segmenter.path=.*c.png: no such file; expected a gray PNG of 3 x 2 pixels"):
        segmenter(images, maps, ["crab"] * 2, ["a", "c"])


@pytest.mark.parametrize(("kind", "white"), [("uint8", 255), ("uint16", 65535), ("bool", 1)])
def test_a_pixel_brighter_than_half_is_one(kind: str, white: int, tmp_path: Path) -> None:
    """Half of 255 lies between 127 and 128, half of 65535 between 32767 and 32768; of one bit between 0 and 1."""
    path = save(tmp_path / "m.png", [[0, white // 2, white // 2 + 1, white]], kind)
    assert read_mask("task.mask", path, (1, 4)).tolist() == [[[0.0, 0.0, 1.0, 1.0]]]


def test_wrong_masks_are_refused_in_one_line(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2)).save(tmp_path / "colour.png")
    (tmp_path / "broken.png").write_bytes((save(tmp_path / "m.png", [[0] * 40] * 40)).read_bytes()[:60])
    (tmp_path / "text.png").write_text("no picture")
    cases = {
        "m.png": "40 x 40 pixels; expected a gray PNG of 3 x 2 pixels", "colour.png": "its mode is RGBA; expected",
        "broken.png": "cannot be read; expected", "text.png": "cannot be read; expected", "none.png": "no such file",
    }  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            read_mask("task.mask", tmp_path / name, (2, 3))
        assert str(caught.value).startswith(f"task.mask={tmp_path / name}: ") and "\n" not in str(caught.value)


def test_a_missing_folder_of_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="segmenter.path is missing"):
        FileSegmenter(None)
    with pytest.raises(UserError, match="segmenter.path=.*none: no such folder"):
        FileSegmenter(str(tmp_path / "none"))
