"""A call beside the computation: never twice at once, done when its context is left, and its errors come up."""

from __future__ import annotations

import threading

import pytest

from runner.background import Background


def test_it_runs_in_another_thread_and_is_done_when_the_context_is_left() -> None:
    made: list[int] = []
    with Background(lambda: made.append(threading.get_ident())) as call:
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

    with Background(slow) as call:
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


def test_its_error_comes_up_at_the_next_call_or_when_it_is_waited_for() -> None:
    def full() -> None:
        raise OSError(28, "disk full")

    with Background(full) as call:
        call()
        with pytest.raises(OSError, match="disk full"):
            call.wait()
        with pytest.raises(OSError, match="disk full"):
            call()
