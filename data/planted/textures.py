"""Building blocks of textures."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mix(low: tuple[float, ...], high: tuple[float, ...], weight: Tensor) -> Tensor:
    """Colors (n, 3, 64, 64) between `low` and `high`, by a weight (n, 64, 64) in [0, 1]."""
    a, b = torch.tensor(low).view(1, 3, 1, 1), torch.tensor(high).view(1, 3, 1, 1)
    return a + (b - a) * weight.unsqueeze(1)


def wave(phase: Tensor) -> Tensor:
    """A sine wave of period 1 in [0, 1]."""
    return 0.5 + 0.5 * torch.sin(2 * math.pi * phase)
