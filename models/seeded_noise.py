"""Random numbers that depend on the seed of a problem and on their purpose alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

GRAY = 0.5  # the middle of [0, 1], from which images are initialized


def derive_seed(seed: int, *purpose: object) -> int:
    """A seed that differs for each purpose; equal arguments give the same seed."""
    return int.from_bytes(hashlib.sha256(repr((seed, *purpose)).encode()).digest()[:7], "big")


def gray_noise(shape: Sequence[int], std: float, seed: int) -> Float[Tensor, "3 h w"]:
    """Gray plus Gaussian noise of standard deviation `std`, clamped to [0, 1]."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "pixels"))
    return (GRAY + std * torch.randn(tuple(shape), generator=generator)).clamp(0, 1)
