"""Parts that are loaded at their first use, so that runs that do not need them work without their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Part = TypeVar("Part")


@dataclass(frozen=True)
class LazyPart(Generic[Part]):
    """load: loads the part, at every call."""

    load: Callable[[], Part]


def load_if_lazy(part: Part | LazyPart[Part]) -> Part:
    """The part itself, loaded if it is lazy."""
    return part.load() if isinstance(part, LazyPart) else part
