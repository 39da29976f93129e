"""Signals that stop a run with its state saved, at once or after the current step: SIGINT by Ctrl-C, SIGHUP by a closed
terminal, SIGTERM, SIGUSR1 and SIGUSR2 by clusters."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from classifier_lens.runner.logging.console import redirect_to_devnull

# Exit codes as a shell has them; the signals of clusters share one.
EXIT_CODES = {
    signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGUSR2: 143,
}  # fmt: skip
SIGNALS = tuple(EXIT_CODES)

Handler = Callable[[int, FrameType | None], Any] | int | None


class RunStopped(BaseException):
    """A signal stopped the run; the message is its name. Like KeyboardInterrupt, it is not an Exception."""

    @property
    def exit_code(self) -> int:
        """The exit code of the process."""
        return EXIT_CODES[signal.Signals[str(self)]]

    @property
    def message(self) -> str:
        """The line for the console."""
        return f"stopped by {self}; the same command continues the run"


def is_stop_code(code: int) -> bool:
    """Whether an exit code is that of a run that a signal stopped."""
    return code in EXIT_CODES.values()


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Within, a signal without another handler ends the process at once with a line and its exit code, not with an
    exception, which imports may swallow or wrap. For phases that leave no partial results: imports and composition."""
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.signal(number, _end) for number in SIGNALS if signal.getsignal(number) in defaults}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    stop = RunStopped(signal.Signals(number).name)
    with suppress(OSError, RuntimeError, ValueError):  # during another print, or without a terminal
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"{stop.message}\n".encode())
    os._exit(stop.exit_code)


class SignalHandler:
    """Raises RunStopped at the first signal, within `deferred()` at the end of the block. Later signals are ignored, so
    that they cannot interrupt a run that is saving its state."""

    def __init__(self) -> None:
        self._pending: signal.Signals | None = None
        self._deferred = False
        self._listening = False
        self._before: dict[signal.Signals, Handler] = {}
        self._terminals: list[int] = []

    @contextmanager
    def installed(self) -> Iterator[SignalHandler]:
        """Handle the signals within, except those that the process ignores (`nohup`), and restore the previous handlers
        afterwards. Nested calls do nothing."""
        if self._listening:
            yield self
            return
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        handled = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        self._before = {number: signal.signal(number, self._handle) for number in handled}
        self._listening = True
        try:
            yield self
        finally:
            self._listening = False
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def forward(self) -> None:
        """Call the previous handler of the signal after the run has ended: submitit's handler requeues the job."""
        handler = None if self._pending is None else self._before[self._pending]
        if self._pending is not None and callable(handler) and handler not in (_end, signal.default_int_handler):
            handler(self._pending, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _redirect_closed(self._terminals)
        if self._pending is None:
            self._pending = signal.Signals(number)
            if not self._deferred:
                self.check()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Delay RunStopped until the end of the block."""
        before, pending, self._deferred = self._deferred, self._pending, True
        try:
            yield
        finally:
            self._deferred = before
        if not before and pending is None:
            self.check()

    def check(self) -> None:
        """Raise RunStopped if a signal has arrived."""
        if self._pending:
            raise RunStopped(self._pending.name)


def _redirect_closed(terminals: list[int]) -> None:
    """Redirect closed terminals to the null device: a write to them would raise an error and prevent saving."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            redirect_to_devnull(descriptor)
