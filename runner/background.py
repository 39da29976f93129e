"""A call that is made again and again while the computation goes on, such as a run's page."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Makes a call in a thread of its own whenever it is asked to. Where the last one is not done yet, none is begun:
    the next one does its work too. Leaving the context waits for it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._thread = ThreadPoolExecutor(1, "background")
        self._last: Future[object] | None = None

    def __enter__(self) -> Background:
        return self

    def __call__(self) -> None:
        """Raises what ended the last call, if anything did."""
        if self._last is None or self._last.done():
            self.wait()
            self._last = self._thread.submit(self._call)

    def wait(self) -> None:
        """Until the last call is done. Raises what ended it, if anything did."""
        if self._last is not None:
            self._last.result()

    def __exit__(self, *raised: object) -> None:
        self._thread.shutdown()
