"""Seeded tables of uniform numbers, in which every row can be computed alone."""

from __future__ import annotations

import numpy as np

COLUMNS = 32  # a multiple of the four numbers per step of Philox


def uniform_numbers(seed: int, start: int, n: int) -> np.ndarray:
    """Rows `start` to `start + n` of the infinite table (·, 32) of a seed: float64 numbers in [0, 1)."""
    bits = np.random.Philox(key=seed)
    bits.advance(start * COLUMNS // 4)
    return np.random.Generator(bits).random((n, COLUMNS))
