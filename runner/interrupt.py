"""SIGTERM and SIGUSR2 end a run in good order: at once, or after the step in progress."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Stopped(Exception):
    """The run was asked to stop; the message names the signal."""


class Interrupt:
    """Raises `Stopped` when a signal comes, but not inside `deferred()`: there it comes at the end."""

    def __init__(self) -> None:
        self._pending: str | None = None
        self._deferred = False

    @contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Handle the signals within; afterwards whoever handled them before does so again."""
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._pending = signal.Signals(number).name
        if not self._deferred:
            raise Stopped(self._pending)

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
            raise Stopped(self._pending)
