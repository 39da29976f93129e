"""A call beside the computation: never twice at once, done when its context is left, and its errors come up."""

from __future__ import annotations

import threading

import pytest

from classifier_lens.runner.report.background_refresh import REST_FACTOR, BackgroundRefresh


def test_it_runs_in_another_thread_and_is_done_when_the_context_is_left() -> None:
    made: list[int] = []
    with BackgroundRefresh(lambda: made.append(threading.get_ident())) as call:
        call()
    assert len(made) == 1
    assert made[0] != threading.get_ident()


def test_what_is_asked_for_while_it_is_still_at_it_is_left_out() -> None:
    made: list[None] = []
    begun, go = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go.wait(10)
        made.append(None)

    with BackgroundRefresh(slow, clock=lambda: 0.0) as call:
        call()
        assert begun.wait(10)
        call()
        call()
        assert not made
        go.set()
        call.wait()
        assert len(made) == 1
        call()
    assert len(made) == 2


def test_it_rests_for_many_times_its_own_duration_whatever_that_is() -> None:
    """Each call takes longer than the last one, as with every batch of a run; they take a twentieth of the time."""
    now, spent = 0.0, 0.0

    def longer_and_longer() -> None:
        nonlocal now, spent
        took = 1.0 + now / 1000
        now, spent = now + took, spent + took

    with BackgroundRefresh(longer_and_longer, clock=lambda: now) as call:
        for _ in range(10_000):
            now += 1.0
            call()
            call.wait()
    assert 0.03 * now < spent < now / REST_FACTOR + 12


def test_its_error_comes_up_at_the_next_call_or_when_it_is_waited_for() -> None:
    def full() -> None:
        raise OSError(28, "disk full")

    with BackgroundRefresh(full) as call:
        call()
        with pytest.raises(OSError, match="disk full"):
            call.wait()
        with pytest.raises(OSError, match="disk full"):
            call()
