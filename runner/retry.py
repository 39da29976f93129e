"""A batch whose computation raises an error is tried again in parts: only problems that raise it alone fail."""

from __future__ import annotations

import gc
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from classifier_lens.runner.cluster.leases import LeaseLostError
from classifier_lens.runner.errors import is_out_of_memory, is_problem_error
from classifier_lens.runner.logging.progress_bar import Progress
from classifier_lens.runner.paths import CODE_FOLDERS
from classifier_lens.runner.results.run_folder import RunFolder
from classifier_lens.runner.types import NonFiniteError, Problem, UnreadableImageError, first_line

LIBRARY_FOLDERS = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
MEMORY_HINT = (
    "batch=, generator.gradient_checkpointing=step or block, and generator.dtype=bfloat16 or float16 take less"
)


@dataclass(frozen=True)
class Failure:
    """What an error leaves. error: one line, with the file and line where it was raised; traceback: all of it;
    out_of_memory: whether there was too little."""

    error: str
    traceback: str
    out_of_memory: bool

    @staticmethod
    def from_error(error: Exception, formats: str = "") -> Failure:
        """formats: what is said of number formats where a value is not finite."""
        whole = "".join(traceback.format_exception(error))
        if isinstance(error, (UnreadableImageError, NonFiniteError)):
            return Failure(f"{error}{formats if isinstance(error, NonFiniteError) else ''}", whole, out_of_memory=False)
        memory = is_out_of_memory(error)
        line = f"{type(error).__name__}: {first_line(error)}{_place(error)}"
        return Failure(f"out of memory: {MEMORY_HINT} ({line})" if memory else line, whole, memory)


class DeviceLostError(Exception):
    """The GPU computes nothing more in this process; the message is one line."""


def _place(error: BaseException) -> str:
    """The innermost line of the user's own code, else of ours."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    known = [f for f in frames if not any(Path(f.filename).is_relative_to(place) for place in LIBRARY_FOLDERS)]
    own = [f for f in known if not any(Path(f.filename).is_relative_to(place) for place in CODE_FOLDERS)]
    found = own or known or frames
    return f" ({found[-1].filename}:{found[-1].lineno})" if found else ""


class BatchRetry:
    """Solves batches. One that raises an error is solved in parts, halves where memory was short and else problem by
    problem; what raises it alone fails. After memory was short, further batches are solved in parts of that size.

    folder: where results and failures are noted; device: where it is computed; formats: see `Failure.from_error`; by:
    the name of this process.
    """

    def __init__(self, folder: RunFolder, bar: Progress, device: torch.device, formats: str, by: str) -> None:
        self._folder, self._bar, self._device, self._formats, self._by = folder, bar, device, formats, by
        self._most: int | None = None

    def __call__(self, problems: Sequence[Problem], attempt: Callable[[int, int, Sequence[str]], None]) -> None:
        """attempt: solves the problems from one position to before another, with notes for their records.

        Raises DeviceLostError, and what is nobody's problem: mistakes of the user's, a full disk, a batch that was
        lost.
        """
        size = max(min(self._most or len(problems), len(problems)), 1)
        note = [] if size == len(problems) else [_note(len(problems), "ran out of memory", size)]
        for start, stop in _cut(0, len(problems), size):
            self._part(problems, attempt, start, stop, note)

    def drop_failed(self, problems: Sequence[Problem]) -> list[Problem]:
        """Fail those that could not be asked; returns the others."""
        for problem in problems:
            if problem.error is not None:
                self._fail([problem], Failure.from_error(problem.error, self._formats))
        return [problem for problem in problems if problem.error is None]

    def _part(
        self, problems: Sequence[Problem], attempt: Callable[[int, int, Sequence[str]], None], start: int, stop: int,
        note: Sequence[str],
    ) -> None:  # fmt: skip
        failure = _tried(lambda: attempt(start, stop, note), self._formats)
        if failure is None:
            return
        gc.collect()
        if not device_works(self._device):
            self._fail(problems[start:stop], failure)
            raise DeviceLostError(f"{self._device} computes nothing more: {failure.error}")
        if stop - start == 1:
            self._fail(problems[start:stop], failure)
            return
        size = (stop - start + 1) // 2 if failure.out_of_memory else 1
        self._most = size if failure.out_of_memory else self._most
        why = "ran out of memory" if failure.out_of_memory else f"failed ({failure.error})"
        advice = f"; {MEMORY_HINT}" if failure.out_of_memory else ""
        self._bar.message(f"a batch of {stop - start} {why}: {size} at once are tried{advice}")
        for first, last in _cut(start, stop, size):
            if all(map(self._done, problems[first:last])):
                self._bar.advance(last - first)
            else:
                self._part(problems, attempt, first, last, [_note(stop - start, why, size)])

    def _done(self, problem: Problem) -> bool:
        return self._folder.is_done(problem.name)

    def _fail(self, problems: Sequence[Problem], failure: Failure) -> None:
        for problem in problems:
            if not self._done(problem):
                self._folder.write_failure(problem.name, failure.error, failure.traceback, self._by)
        self._bar.advance(len(problems))


def device_works(device: torch.device) -> bool:
    """Whether a device still computes: some errors end that for a process. Its unused memory is given back."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.empty_cache()
        return bool(torch.ones(1, device=device).add(1).item() == 2)
    except RuntimeError:
        return False


def _tried(attempt: Callable[[], None], formats: str) -> Failure | None:
    """What an attempt's error leaves: not the error itself, which would hold on to the memory of what raised it."""
    try:
        attempt()
    except LeaseLostError:
        raise
    except Exception as error:
        if not is_problem_error(error):
            raise
        return Failure.from_error(error, formats)
    return None


def _cut(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def _note(count: int, why: str, size: int) -> str:
    return f"its batch of {count} {why}; it was solved with {size} at once, which may differ by rounding"
