"""An error ends the problems that raise it alone, and no other."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from classifier_lens.runner.cluster.leases import LeaseLostError
from classifier_lens.runner.cluster.signals import RunStopped
from classifier_lens.runner.errors import is_out_of_memory
from classifier_lens.runner.retry import BatchRetry, DeviceLostError, Failure
from classifier_lens.runner.types import CaptionEdit, NonFiniteError, Problem, UnreadableImageError, UserError

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("frozen_objects")


def problem(name: str) -> Problem:
    return Problem(name=name, seed=0, edit=CaptionEdit.unchanged("a", "a"), load=None, image_name=name, preserve="none")


class Work:
    """Problems by their letters. solved: with what notes; failed: with what; tried: the parts, in order; trouble: what
    a part raises; before: problems that are done before a part raises."""

    def __init__(self, trouble: Callable[[str], Exception | None], before: str = "") -> None:
        self.trouble, self.before = trouble, before
        self.solved: dict[str, list[str]] = {}
        self.failed: dict[str, Failure] = {}
        self.tried: list[str] = []
        self.said: list[str] = []
        self.counted = 0
        self.retry = BatchRetry(self, self, CPU, "; in bfloat16", "here-1")  # type: ignore[arg-type]

    def is_done(self, name: str) -> bool:
        return name in self.solved or name in self.failed

    def write_failure(self, name: str, error: str, traceback: str, process_name: str) -> None:
        assert process_name == "here-1"
        self.failed[name] = Failure(error, traceback, False)

    def message(self, text: str) -> None:
        self.said.append(text)

    def advance(self, n: int) -> None:
        self.counted += n

    def __call__(self, names: str) -> Work:
        def attempt(start: int, stop: int, told: Sequence[str]) -> None:
            part = names[start:stop]
            self.tried.append(part)
            self.solved.update({name: [] for name in part if name in self.before})
            if (error := self.trouble(part)) is not None:
                raise error
            self.solved.update({name: list(told) for name in part if name not in self.solved})
            self.counted += len(part)

        self.retry([problem(name) for name in names], attempt)
        return self


def on(letter: str, error: Exception) -> Callable[[str], Exception | None]:
    return lambda part: error if letter in part else None


def test_a_batch_without_trouble_is_solved_at_once() -> None:
    work = Work(lambda part: None)("abcd")
    assert (work.tried, work.solved, work.failed, work.said) == (["abcd"], {name: [] for name in "abcd"}, {}, [])


def test_one_problem_fails_by_name_and_the_others_are_solved_alone() -> None:
    work = Work(on("c", ValueError("no crab\nmore")))("abcd")
    assert work.tried == ["abcd", "a", "b", "c", "d"]
    assert list(work.failed) == ["c"] and work.counted == 4
    assert work.failed["c"].error.startswith("ValueError: no crab (") and "Traceback" in work.failed["c"].traceback
    for notes in work.solved.values():
        (note,) = notes
        assert note.startswith("its batch of 4 failed (ValueError: no crab") and "solved with 1 at once" in note
    (said,) = work.said
    assert said.startswith("a batch of 4 failed (ValueError: no crab")


def test_a_problem_that_passes_alone_is_no_failure() -> None:
    work = Work(lambda part: RuntimeError("only together") if len(part) > 1 else None)("abc")
    assert set(work.solved) == set("abc") and not work.failed


def test_what_was_done_before_the_error_is_not_done_again() -> None:
    work = Work(on("b", ValueError("no")), before="a")("abc")
    assert work.tried == ["abc", "b", "c"] and work.solved["a"] == [] and work.counted == 3


def test_a_batch_of_one_is_not_tried_twice() -> None:
    work = Work(on("a", ValueError("no")))("a")
    assert work.tried == ["a"] and list(work.failed) == ["a"]


CPU_SHORT = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")
SHORT = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "host": MemoryError(),
    "cpu": CPU_SHORT, "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
}  # fmt: skip


@pytest.mark.parametrize("error", SHORT.values(), ids=list(SHORT))
def test_where_memory_is_short_the_batch_is_halved_and_stays_so(error: Exception) -> None:
    assert is_out_of_memory(error)
    work = Work(lambda part: error if len(part) > 2 else None)
    work("abcdefg")
    assert work.tried == ["abcdefg", "abcd", "ab", "cd", "efg", "ef", "g"] and set(work.solved) == set("abcdefg")
    work.tried.clear()
    work("hijk")
    assert work.tried == ["hi", "jk"], "further batches begin with what has room"
    (note,) = work.solved["h"]
    assert note.startswith("its batch of 4 ran out of memory; it was solved with 2 at once")
    assert all(key in work.said[0] for key in ("batch=", "generator.gradient_checkpointing=", "generator.dtype="))


def test_one_problem_that_has_no_room_says_what_takes_less() -> None:
    work = Work(lambda part: MemoryError())("ab")
    assert work.tried == ["ab", "a", "b"] and set(work.failed) == {"a", "b"}
    assert all(
        key in work.failed["a"].error
        for key in ("out of memory", "generator.gradient_checkpointing=", "generator.dtype=")
    )


def test_what_an_error_was_raised_from_counts() -> None:
    try:
        raise ValueError("building") from MemoryError()
    except ValueError as error:
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(None)


NOBODYS = [
    UserError("a=b"),
    LeaseLostError("x"),
    OSError(errno.ENOSPC, "full"),
    RunStopped("SIGTERM"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", NOBODYS, ids=lambda e: type(e).__name__)
def test_what_is_nobodys_problem_is_passed_on(error: Exception) -> None:
    work = Work(on("a", error))
    with pytest.raises(type(error)):
        work("ab")
    assert work.tried == ["ab"] and not work.failed


def test_the_place_is_the_users_own_line(tmp_path: Path) -> None:
    """Not that of the library below it, nor ours above it."""
    file = tmp_path / "net.py"
    file.write_text("import torch\n\ndef net(x):\n    return torch.nn.functional.linear(x, x.T)\n")
    user: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), user)

    def trouble(part: str) -> None:
        user["net"](torch.zeros(2, 3))

    assert Work(trouble)("a").failed["a"].error.endswith(f"({file}:4)")


def test_a_mistake_of_ours_shows_its_place() -> None:
    def trouble(part: str) -> None:
        SimpleNamespace().missing  # noqa: B018

    failure = Work(trouble)("a").failed["a"]
    assert failure.error.startswith("AttributeError: ") and f"{os.path.basename(__file__)}:" in failure.error


def test_a_device_that_is_lost_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else of it is blamed on a problem."""
    monkeypatch.setattr("classifier_lens.runner.retry.device_works", lambda device: False)
    work = Work(on("c", RuntimeError("CUDA error: device-side assert triggered")))
    with pytest.raises(DeviceLostError, match="cpu does not work any more: RuntimeError: CUDA error"):
        work("abc")
    assert work.tried == ["abc"] and set(work.failed) == set("abc")


def test_an_image_that_cannot_be_read_fails_its_own_problem() -> None:
    error = UnreadableImageError("crab-1: its image was changed")
    found = Work(lambda part: error if "b" in part else None)("abc")
    assert set(found.solved) == {"a", "c"} and found.failed["b"].error == str(error)


def test_a_number_that_is_not_finite_fails_its_own_problem() -> None:
    """Also where it is measured before the first step, such as a unit's activation in the original."""
    error = NonFiniteError("the activation of features:3: not finite")
    work = Work(on("b", error))("abc")
    assert list(work.failed) == ["b"] and work.failed["b"].error == f"{error}; in bfloat16", "which may be why"
    assert set(work.solved) == {"a", "c"}


def test_what_could_not_be_asked_fails_by_its_name_and_costs_the_others_nothing() -> None:
    work = Work(lambda part: None)
    asked = [problem("a"), replace(problem("b"), error=NonFiniteError("the logits: not finite")), problem("c")]
    left = work.retry.drop_failed(asked)
    assert [p.name for p in left] == ["a", "c"] and list(work.failed) == ["b"] and work.counted == 1
    assert work.failed["b"].error == "the logits: not finite; in bfloat16"
    assert "NonFiniteError" in work.failed["b"].traceback
    Work(lambda part: None).retry([], lambda *_: None)  # where nothing of a batch is left
