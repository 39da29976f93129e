"""Progress of long loops, sent to the console by way of a logger of the standard library."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
LOG = logging.getLogger("classifier_lens.runner.logging.loop_progress")
LOG.propagate = False  # a line of a log file for every item would be too many
LOG.setLevel(logging.INFO)


def track_progress(items: Sequence[T], description: str, size: int = 1) -> Iterator[T]:
    """The items, one after the other, counted as `size` units each."""
    for i, item in enumerate(items):
        LOG.info("%d of %d %s", i * size, len(items) * size, description)
        yield item


@contextmanager
def show_progress(
    show: Callable[[str], None], interval: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[None]:
    """Show counts within, at most one in each `interval` (s), and none in the first."""
    handler = _Handler(show, interval, clock)
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)


class _Handler(logging.Handler):
    def __init__(self, show: Callable[[str], None], interval: float, clock: Callable[[], float]) -> None:
        super().__init__()
        self._show, self._every, self._clock, self._last = show, interval, clock, clock()

    def emit(self, record: logging.LogRecord) -> None:
        if (now := self._clock()) - self._last >= self._every:
            self._last = now
            self._show(record.getMessage())
