"""A signal stops a run at once, or after what must not be cut in two."""

from __future__ import annotations

import os
import signal

import pytest

from runner.interrupt import SIGNALS, Interrupt, Stopped


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once(number: signal.Signals) -> None:
    interrupt = Interrupt()
    with interrupt.listening(), pytest.raises(Stopped, match=number.name):
        os.kill(os.getpid(), number)


def test_a_signal_waits_for_the_step_in_progress() -> None:
    interrupt, done = Interrupt(), []
    with interrupt.listening(), pytest.raises(Stopped, match="SIGTERM"), interrupt.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("step")
        interrupt.check()
    assert done == ["step"]


def test_earlier_handlers_come_back() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        with Interrupt().listening():
            pass
        os.kill(os.getpid(), signal.SIGUSR2)
        assert seen == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_check_is_silent_without_a_signal() -> None:
    Interrupt().check()


def test_a_signal_is_passed_on_to_who_handled_it_before() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        interrupt = Interrupt()
        with pytest.raises(Stopped), interrupt.listening():
            os.kill(os.getpid(), signal.SIGUSR2)
        assert not seen, "not before the run has ended"
        interrupt.pass_on()
        assert seen == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_nothing_is_passed_on_without_a_signal_or_to_nobody() -> None:
    Interrupt().pass_on()
    interrupt = Interrupt()
    with pytest.raises(Stopped), interrupt.listening():
        os.kill(os.getpid(), signal.SIGUSR1)  # whose handler was the system's own, which would end this process
    interrupt.pass_on()
