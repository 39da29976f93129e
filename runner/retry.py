"""Retries of a batch whose computation raises an error, in parts: only problems that raise it alone fail."""

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


# Solves the problems from one position to before another, with warnings for their records.
Attempt = Callable[[int, int, Sequence[str]], None]


@dataclass(frozen=True)
class Failure:
    """A failed computation. error: one line, with the file and line that raised it; traceback: complete; out_of_memory:
    whether that is the reason."""

    error: str
    traceback: str
    out_of_memory: bool

    @staticmethod
    def from_error(error: Exception, dtype_hint: str = "") -> Failure:
        """dtype_hint: what the line says about number formats if a value is not finite."""
        text = "".join(traceback.format_exception(error))
        if isinstance(error, (UnreadableImageError, NonFiniteError)):
            hint = dtype_hint if isinstance(error, NonFiniteError) else ""
            return Failure(f"{error}{hint}", text, out_of_memory=False)
        out_of_memory = is_out_of_memory(error)
        line = f"{type(error).__name__}: {first_line(error)}{_location(error)}"
        return Failure(f"out of memory: {MEMORY_HINT} ({line})" if out_of_memory else line, text, out_of_memory)


class DeviceLostError(Exception):
    """The GPU does not work any more in this process; the message is one line."""


def _location(error: BaseException) -> str:
    """The innermost line of the user's code, else of this project's, else of a library."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    no_library = [f for f in frames if not any(Path(f.filename).is_relative_to(folder) for folder in LIBRARY_FOLDERS)]
    user_code = [f for f in no_library if not any(Path(f.filename).is_relative_to(folder) for folder in CODE_FOLDERS)]
    candidates = user_code or no_library or frames
    return f" ({candidates[-1].filename}:{candidates[-1].lineno})" if candidates else ""


class BatchRetry:
    """Solves batches. A batch that raises an error is solved in parts, in halves if it ran out of memory, else problem
    by problem; a problem that raises the error alone fails. After a batch ran out of memory, later batches are solved
    in parts of the size that fitted.

    folder: of results and failures; dtype_hint: see `Failure.from_error`; process: name of this process.
    """

    def __init__(self, folder: RunFolder, bar: Progress, device: torch.device, dtype_hint: str, process: str) -> None:
        self._folder, self._bar, self._device = folder, bar, device
        self._dtype_hint, self._process = dtype_hint, process
        self._largest_size: int | None = None

    def __call__(self, problems: Sequence[Problem], attempt: Attempt) -> None:
        """Solve the problems by attempts.

        Raises DeviceLostError, and errors that belong to no problem: mistakes of the user, a full disk, a lost lease.
        """
        size = max(min(self._largest_size or len(problems), len(problems)), 1)
        warnings = [] if size == len(problems) else [_size_warning(len(problems), "ran out of memory", size)]
        for start, stop in _parts(0, len(problems), size):
            self._solve(problems, attempt, start, stop, warnings)

    def drop_failed(self, problems: Sequence[Problem]) -> list[Problem]:
        """Record the failure of problems that could not be created; returns the others."""
        for problem in problems:
            if problem.error is not None:
                self._fail([problem], Failure.from_error(problem.error, self._dtype_hint))
        return [problem for problem in problems if problem.error is None]

    def _solve(
        self, problems: Sequence[Problem], attempt: Attempt, start: int, stop: int, warnings: Sequence[str]
    ) -> None:
        failure = _failure_of(lambda: attempt(start, stop, warnings), self._dtype_hint)
        if failure is None:
            return
        gc.collect()
        if not device_works(self._device):
            self._fail(problems[start:stop], failure)
            raise DeviceLostError(f"{self._device} does not work any more: {failure.error}")
        if stop - start == 1:
            self._fail(problems[start:stop], failure)
            return
        size = (stop - start + 1) // 2 if failure.out_of_memory else 1
        self._largest_size = size if failure.out_of_memory else self._largest_size
        reason = "ran out of memory" if failure.out_of_memory else f"failed ({failure.error})"
        hint = f"; {MEMORY_HINT}" if failure.out_of_memory else ""
        self._bar.message(f"a batch of {stop - start} {reason}: it is solved with {size} at once{hint}")
        for first, last in _parts(start, stop, size):
            if all(map(self._done, problems[first:last])):
                self._bar.advance(last - first)
            else:
                self._solve(problems, attempt, first, last, [_size_warning(stop - start, reason, size)])

    def _done(self, problem: Problem) -> bool:
        return self._folder.is_done(problem.name)

    def _fail(self, problems: Sequence[Problem], failure: Failure) -> None:
        for problem in problems:
            if not self._done(problem):
                self._folder.write_failure(problem.name, failure.error, failure.traceback, self._process)
        self._bar.advance(len(problems))


def device_works(device: torch.device) -> bool:
    """Whether a device still works: some errors of CUDA end that for the process. Frees its unused memory."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.empty_cache()
        return bool(torch.ones(1, device=device).add(1).item() == 2)
    except RuntimeError:
        return False


def _failure_of(attempt: Callable[[], None], dtype_hint: str) -> Failure | None:
    """The failure of an attempt, None if it succeeds. It does not hold the error, which would keep the memory of its
    frames."""
    try:
        attempt()
    except LeaseLostError:
        raise
    except Exception as error:
        if not is_problem_error(error):
            raise
        return Failure.from_error(error, dtype_hint)
    return None


def _parts(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def _size_warning(count: int, reason: str, size: int) -> str:
    return f"its batch of {count} {reason}; it was solved with {size} at once, so that results may differ by rounding"
