"""Random numbers that follow from a problem's seed and from what they are for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

GRAY = 0.5  # the middle of the range, which images are drawn to where nothing speaks for another color


def derive_seed(seed: int, *place: object) -> int:
    """A seed of its own for every use of a problem's seed; equal uses give equal ones."""
    return int.from_bytes(hashlib.sha256(repr((seed, *place)).encode()).digest()[:7], "big")


def gray_noise(shape: Sequence[int], std: float, seed: int) -> Float[Tensor, "3 h w"]:
    """Gray with Gaussian noise of a problem's seed, standard deviation `std`, cut to [0, 1]."""
    draw = torch.Generator().manual_seed(derive_seed(seed, "pixels"))
    return (GRAY + std * torch.randn(tuple(shape), generator=draw)).clamp(0, 1)
