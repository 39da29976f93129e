"""SIGTERM, SIGUSR1 and SIGUSR2 end a run in good order: at once, or after the step in progress."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(BaseException):
    """The run was asked to stop; the message names the signal. As KeyboardInterrupt it is no error."""


class Interrupt:
    """Raises `Stopped` when a signal comes, but not inside `deferred()`: there it comes at the end."""

    def __init__(self) -> None:
        self._pending: signal.Signals | None = None
        self._deferred = False
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Handle the signals within; afterwards whoever handled them before does so again."""
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def pass_on(self) -> None:
        """Let whoever handled the signal before know of it, once the run has ended: what runs SLURM's jobs puts them
        back into the queue."""
        handler = None if self._pending is None else self._before[self._pending]
        if self._pending is not None and callable(handler):
            handler(self._pending, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._pending = signal.Signals(number)
        if not self._deferred:
            raise Stopped(self._pending.name)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let what is inside finish first."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def check(self) -> None:
        """Raise `Stopped` if a signal came meanwhile."""
        if self._pending:
            raise Stopped(self._pending.name)
