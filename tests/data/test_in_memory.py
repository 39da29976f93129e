"""Images as objects of a program: conversion or refusal in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from classifier_lens.data.in_memory import to_image_tensor
from classifier_lens.runner.types import UserError

BYTES = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
WANTED = torch.from_numpy(BYTES).permute(2, 0, 1).float() / 255
NUMBERS = WANTED.numpy()
GRAY = Image.fromarray(BYTES[..., 0])


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(BYTES),
        BYTES,
        BYTES.transpose(2, 0, 1),
        BYTES[None],
        BYTES[..., ::-1].copy()[..., ::-1],  # as OpenCV's order is turned: a negative stride
        NUMBERS,
        NUMBERS.astype(np.float64),
        NUMBERS.astype(">f4"),
        np.longdouble(NUMBERS),
        torch.from_numpy(BYTES),
        WANTED,
        WANTED[None],
        WANTED.permute(1, 2, 0),
        WANTED.double(),
        WANTED.clone().requires_grad_(),
        WANTED * (1 + 1e-7),
        np.concatenate([BYTES, np.full_like(BYTES[..., :1], 255)], axis=2),
    ],
    ids=lambda image: f"{type(image).__name__} {getattr(image, 'dtype', '')} {getattr(image, 'shape', '')}",
)
def test_the_same_image_in_every_form(image: Any) -> None:
    tensor = to_image_tensor(image)
    assert tensor.shape == (3, 20, 30) and tensor.dtype == torch.float32 and not tensor.requires_grad
    assert torch.allclose(tensor, WANTED, atol=1e-6)


@pytest.mark.parametrize("image", [GRAY, BYTES[..., 0], BYTES[..., :1], WANTED[:1], WANTED[0], GRAY.convert("LA")])
def test_gray_is_repeated(image: Any) -> None:
    assert torch.allclose(to_image_tensor(image), WANTED[:1].expand(3, -1, -1))


def test_modes_of_pillow() -> None:
    palette = Image.fromarray(BYTES).quantize(16)
    assert torch.equal(to_image_tensor(palette), to_image_tensor(palette.convert("RGB")))
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert torch.equal(to_image_tensor(clear), torch.ones(3, 16, 16)), "on white"
    assert torch.equal(to_image_tensor(np.array(clear)), torch.ones(3, 16, 16))
    half = to_image_tensor(np.concatenate([np.zeros((16, 16, 3)), np.full((16, 16, 1), 0.25)], axis=2))
    assert torch.allclose(half, torch.tensor(0.75))
    deep = Image.fromarray(np.full((16, 16), 257 * 51, dtype=np.uint16))
    assert torch.allclose(to_image_tensor(deep), torch.tensor(0.2))


def test_exif_orientation_rotates() -> None:
    image = Image.fromarray(BYTES)
    image.getexif()[0x0112] = 6  # a quarter turn
    assert to_image_tensor(image).shape == (3, 30, 20)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "type NoneType"),
        ("crab.png", "type str; .*PIL.Image.open"),
        ([[0.0]], "type list"),
        (NUMBERS * 255, r"from 0 to 255; .*divide values in 0..255 by 255"),
        (WANTED * 2 - 1, r"from -1 to 1; .*\(image \+ 1\) / 2"),
        ((WANTED - 0.45) / 0.22, "before normalization"),
        (WANTED * 1.01, r"from 0 to 1.01; .*numpy.clip\(image, 0, 1\)"),
        (WANTED * 1.00004, "from 0 to 1.00004; "),
        (torch.nested.nested_tensor([WANTED, WANTED]), "expected a Pillow image"),
        (torch.full((3, 20, 20), float("nan")), "1200 of its values are NaN"),
        (np.full((20, 20), np.inf), "NaN or infinite"),
        (BYTES.astype(np.int64), "dtype int64"),
        (BYTES.astype(np.uint16), "dtype uint16"),
        (BYTES > 7, "dtype bool"),
        (BYTES.astype(object), "dtype object"),
        (torch.from_numpy(BYTES).long(), "torch.int64"),
        (WANTED.to_sparse(), "sparse"),
        (torch.empty(3, 20, 20, device="meta"), "meta"),
        (WANTED.to(torch.complex64), "complex64"),
        (BYTES // 255, "no value above 1 of 255"),
        (WANTED[None].expand(2, -1, -1, -1), r"\(2, 3, 20, 30\) is a batch of 2"),
        (WANTED[None, None], "shape"),
        (WANTED[0, 0], "shape"),
        (torch.rand(2, 20, 20), "1, 3 or 4 channels"),
        (torch.rand(20, 20, 20), "1, 3 or 4 channels"),
        (torch.rand(3, 8, 8), r"\(3, 8, 8\); allowed are 16 x 16"),
        (torch.rand(3, 20, 3), "allowed are 16 x 16"),
        (Image.new("RGB", (40, 15)), "allowed are 16 x 16"),
        (torch.empty(3, 0, 0), "allowed are 16 x 16"),
        (Image.new("F", (20, 20)), "mode F"),
        (Image.new("I", (20, 20)), "mode I"),
    ],
)
def test_other_objects_are_refused_in_one_line(image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        to_image_tensor(image)
    assert str(refused.value).startswith("image: ") and "\n" not in str(refused.value)
