"""A call that is repeated in the background of a computation, e.g. writing a run's page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

REST_FACTOR = 20.0  # pause in durations of the last call, so that the calls take less than 1/20 of the time of a run


class BackgroundRefresh:
    """Runs a call in a thread. A request is dropped while the last call runs, and for `REST_FACTOR` times its duration
    afterwards; a later call does its work, too. Leaving the context waits for the last call."""

    def __init__(self, call: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._call, self._clock = call, clock
        self._thread = ThreadPoolExecutor(1, "background")
        self._last: Future[object] | None = None
        self._next = -math.inf

    def __enter__(self) -> BackgroundRefresh:
        return self

    def __call__(self) -> None:
        """Raises what ended the last call, if anything did."""
        if self._last is not None and not self._last.done():
            return
        self.wait()
        if self._clock() >= self._next:
            self._last = self._thread.submit(self._timed)

    def _timed(self) -> None:
        began = self._clock()
        self._call()
        ended = self._clock()
        self._next = ended + REST_FACTOR * (ended - began)

    def wait(self) -> None:
        """Until the last call is done. Raises what ended it, if anything did."""
        if self._last is not None:
            self._last.result()

    def __exit__(self, *raised: object) -> None:
        self._thread.shutdown()
