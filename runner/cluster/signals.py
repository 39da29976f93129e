"""Signals end a run in good order: at once, or after the step in progress. Ctrl-C is SIGINT, a terminal that closes
SIGHUP, and clusters send SIGTERM, SIGUSR1 and SIGUSR2."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from classifier_lens.runner.logging.console import redirect_to_devnull

# The exit code of each: that of a shell, but what clusters send means one and the same.
EXIT_CODES = {
    signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGUSR2: 143,
}  # fmt: skip
SIGNALS = tuple(EXIT_CODES)

Handler = Callable[[int, FrameType | None], Any] | int | None


class RunStopped(BaseException):
    """The run was asked to stop; the message names the signal. As KeyboardInterrupt it is no error."""

    @property
    def exit_code(self) -> int:
        """The process's exit code."""
        return EXIT_CODES[signal.Signals[str(self)]]

    @property
    def message(self) -> str:
        """What the console is told."""
        return f"stopped by {self}; the same command continues"


def is_stop_code(code: int) -> bool:
    """Whether an exit code is that of a run that was asked to stop."""
    return code in EXIT_CODES.values()


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Within, a signal that nobody else handles ends the process with its line and code, without an exception, which
    imports may swallow or wrap. For what leaves nothing half done: imports and the composing of a configuration."""
    ours = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.signal(number, _end) for number in SIGNALS if signal.getsignal(number) in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    stop = RunStopped(signal.Signals(number).name)
    with suppress(OSError, RuntimeError, ValueError):  # a print in progress, or a terminal that is gone
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"{stop.message}\n".encode())
    os._exit(stop.exit_code)


class SignalHandler:
    """Raises `RunStopped` when the first signal comes, but not inside `deferred()`: there it comes at the end. Those
    that follow change nothing, so that a run is not disturbed while it saves."""

    def __init__(self) -> None:
        self._pending: signal.Signals | None = None
        self._deferred = False
        self._listening = False
        self._before: dict[signal.Signals, Handler] = {}
        self._terminals: list[int] = []

    @contextmanager
    def installed(self) -> Iterator[SignalHandler]:
        """Handle the signals within, those apart that the process ignores (`nohup`); afterwards whoever handled them
        before does so again. Inside of itself it does nothing."""
        if self._listening:
            yield self
            return
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        heard = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        self._before = {number: signal.signal(number, self._handle) for number in heard}
        self._listening = True
        try:
            yield self
        finally:
            self._listening = False
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def forward(self) -> None:
        """Let whoever handled the signal before know of it, once the run has ended: what runs SLURM's jobs puts them
        back into the queue."""
        handler = None if self._pending is None else self._before[self._pending]
        if self._pending is not None and callable(handler) and handler not in (_end, signal.default_int_handler):
            handler(self._pending, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _let_go(self._terminals)
        if self._pending is None:
            self._pending = signal.Signals(number)
            if not self._deferred:
                self.check()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let what is inside finish first."""
        before, known, self._deferred = self._deferred, self._pending, True
        try:
            yield
        finally:
            self._deferred = before
        if not before and known is None:
            self.check()

    def check(self) -> None:
        """Raise `RunStopped` if a signal came meanwhile."""
        if self._pending:
            raise RunStopped(self._pending.name)


def _let_go(terminals: list[int]) -> None:
    """Write no more to those terminals that have closed: that would be an error, and the run could not save."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            redirect_to_devnull(descriptor)
