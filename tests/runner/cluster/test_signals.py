"""A signal stops a run at once, or after what must not be cut in two."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from classifier_lens.runner.cluster import signals as signals
from classifier_lens.runner.cluster.signals import SIGNALS, RunStopped, SignalHandler, exit_on_signal, is_stop_code


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once(number: signal.Signals) -> None:
    interrupt = SignalHandler()
    with interrupt.installed(), pytest.raises(RunStopped, match=number.name):
        os.kill(os.getpid(), number)


def test_a_signal_waits_for_the_step_in_progress() -> None:
    interrupt, done = SignalHandler(), []
    with interrupt.installed(), pytest.raises(RunStopped, match="SIGTERM"), interrupt.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("step")
        interrupt.check()
    assert done == ["step"]


def test_earlier_handlers_come_back() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        with SignalHandler().installed():
            pass
        os.kill(os.getpid(), signal.SIGUSR2)
        assert seen == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_check_is_silent_without_a_signal() -> None:
    SignalHandler().check()


def test_a_signal_is_passed_on_to_who_handled_it_before() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        interrupt = SignalHandler()
        with pytest.raises(RunStopped), interrupt.installed():
            os.kill(os.getpid(), signal.SIGUSR2)
        assert not seen, "not before the run has ended"
        interrupt.forward()
        assert seen == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_nothing_is_passed_on_without_a_signal_or_to_nobody() -> None:
    SignalHandler().forward()
    interrupt = SignalHandler()
    with pytest.raises(RunStopped), interrupt.installed():
        os.kill(os.getpid(), signal.SIGUSR1)  # whose handler was the system's own, which would end this process
    interrupt.forward()


CODES = {"SIGINT": 130, "SIGHUP": 129, "SIGTERM": 143, "SIGUSR1": 143, "SIGUSR2": 143}


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_has_its_exit_code(number: signal.Signals) -> None:
    stop = RunStopped(number.name)
    assert stop.exit_code == CODES[number.name] and is_stop_code(stop.exit_code)
    assert stop.message == f"stopped by {number.name}; the same command continues the run"
    assert not any(is_stop_code(code) for code in (0, 1, 2, 75))


@contextmanager
def handled(number: signal.Signals, handler: Callable[..., Any] | int) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_what_the_process_ignores_stays_ignored() -> None:
    """As with `nohup`, and for SIGINT in the background of a shell script."""
    interrupt = SignalHandler()
    with handled(signal.SIGHUP, signal.SIG_IGN), exit_on_signal(), interrupt.installed():
        os.kill(os.getpid(), signal.SIGHUP)
    interrupt.check()


def test_signals_after_the_first_change_nothing() -> None:
    interrupt, done = SignalHandler(), []
    with interrupt.installed(), pytest.raises(RunStopped, match="SIGINT"):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            with interrupt.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("saved")
    assert done == ["saved"]


def test_a_signal_that_comes_last_in_what_was_deferred_is_heard() -> None:
    interrupt = SignalHandler()
    with interrupt.installed(), pytest.raises(RunStopped, match="SIGINT"), interrupt.deferred(), interrupt.deferred():
        os.kill(os.getpid(), signal.SIGINT)


def test_what_swallows_the_exception_does_not_keep_the_run_going() -> None:
    interrupt = SignalHandler()
    with interrupt.installed():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except RunStopped:
            pass
        with pytest.raises(RunStopped, match="SIGINT"):
            interrupt.check()


def test_listening_within_listening_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt = SignalHandler()
    with interrupt.installed():
        with interrupt.installed():
            pass
        with pytest.raises(RunStopped, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_the_imports_ends_the_process_in_one_line(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    with handled(number, signal.SIG_DFL), exit_on_signal():
        print("printed before")
        os.kill(os.getpid(), number)
    assert ends == [CODES[number.name]]
    out, err = capfd.readouterr()
    assert out == "printed before\n" and err == f"stopped by {number.name}; the same command continues the run\n"


def test_who_handles_a_signal_already_keeps_it_during_the_imports() -> None:
    seen: list[int] = []
    with handled(signal.SIGUSR2, lambda number, frame: seen.append(number)), exit_on_signal():
        os.kill(os.getpid(), signal.SIGUSR2)
    assert seen == [signal.SIGUSR2]


def test_nobody_is_told_twice(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither Python's own handler of Ctrl-C nor that of the imports."""
    for outer in (exit_on_signal, lambda: handled(signal.SIGINT, signal.default_int_handler)):
        interrupt = SignalHandler()
        with outer():
            with pytest.raises(RunStopped), interrupt.installed():
                os.kill(os.getpid(), signal.SIGINT)
            interrupt.forward()
    assert capfd.readouterr() == ("", "")


def test_a_closed_terminal_is_redirected() -> None:
    """What is printed goes nowhere, instead of ending a run before it has saved."""
    terminal, end = os.openpty()
    signals._redirect_closed([end])
    os.write(end, b"seen")
    assert os.read(terminal, 4) == b"seen", "it is open yet"
    os.close(terminal)
    with pytest.raises(OSError):
        os.write(end, b"x")
    signals._redirect_closed([end])
    os.write(end, b"x")
    os.close(end)
