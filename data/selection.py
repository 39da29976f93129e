"""Which pictures of a data set a run takes, and the checks of the keys that say so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from runner.types import UserError


def check_choice(key: str, value: str, allowed: Iterable[str]) -> str:
    """The value, if it is one of `allowed`. Raises UserError naming the configuration's `key` otherwise."""
    choices = tuple(allowed)
    if value not in choices:
        raise UserError(f"{key}={value}: allowed are {', '.join(choices)}")
    return value


def check_count(count: int | None, size: int) -> int:
    """How many pictures of `size` are taken; None takes all. Raises UserError outside 1 .. size."""
    if count is None:
        return size
    if not 1 <= count <= size:
        raise UserError(f"data.count={count}: allowed are 1 to {size}, or null for all")
    return count


def check_seed(seed: int) -> int:
    """The seed, if it is not negative. Raises UserError otherwise."""
    if seed < 0:
        raise UserError(f"seed={seed}: allowed are 0 and above")
    return seed


def check_position(i: int, size: int) -> int:
    """The position, if a picture stands there. Raises IndexError otherwise, which also ends a `for` loop."""
    if not 0 <= i < size:
        raise IndexError(f"picture {i} of {size}")
    return i


def digest_of(*parts: object) -> str:
    """SHA-256 of everything that decides a data set's pictures (by `repr`)."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def shuffled(size: int, seed: int) -> list[int]:
    """The positions 0 .. size - 1 in an order that depends on `seed` alone."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(check_seed(seed))).tolist()
