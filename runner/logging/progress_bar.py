"""The progress of a run on the console: a bar, or lines for a log file."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from classifier_lens.runner.logging.loop_progress import show_progress

ETA_BATCHES = 3  # last batches from which the remaining time is estimated
TERMINAL_INTERVAL, LOG_INTERVAL = 0.2, 20.0  # s between two counts


class Progress(Protocol):
    """Shows the progress of a run."""

    def start_batch(self, names: Sequence[str]) -> None:
        """Start a batch of these problems."""

    def set_phase(self, text: str) -> None:
        """Show the phase of the batch, e.g. "preparing"."""

    def message(self, text: str) -> None:
        """Print a permanent line."""

    def step(self, k: int, steps: int, loss: float, confidence: float | None) -> None:
        """Show that `k` of `steps` optimization steps are done; loss and target confidence are means over the batch."""

    def advance(self, n: int) -> None:
        """Count `n` more finished problems."""


@contextmanager
def progress(
    total: int, done: int, console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Progress]:
    """Show the progress through `total` problems, of which `done` are finished: a bar, or lines without a terminal."""
    console = console or Console(file=sys.stdout)
    estimate = ProgressEstimate(total, done, clock)
    if not console.is_terminal:
        lines = ProgressLines(estimate, console)
        with show_progress(lines.set_phase, LOG_INTERVAL):
            yield lines
        return
    bar = ProgressBar(estimate, console)
    with bar.display, show_progress(bar.set_phase, TERMINAL_INTERVAL):
        yield bar


@contextmanager
def preparing(console: Console | None = None) -> Iterator[None]:
    """Show the progress of the preparation within: a line that changes, or lines without a terminal."""
    console = console or Console(file=sys.stdout)
    if not console.is_terminal:
        with show_progress(lambda text: print(f"preparing: {text}", file=console.file, flush=True), LOG_INTERVAL):
            yield
        return
    with (
        console.status("preparing") as status,
        show_progress(lambda text: status.update(f"preparing: {text}"), TERMINAL_INTERVAL),
    ):
        yield


class ProgressEstimate:
    """Progress and remaining time of a run, estimated from the last batches. Problems that other processes finish
    count, too."""

    def __init__(self, total: int, done: int, clock: Callable[[], float]) -> None:
        self.total, self.done = total, done
        self._clock = clock
        self._batch, self._fraction = 0, 0.0
        self._marks: deque[tuple[float, int]] = deque(
            maxlen=ETA_BATCHES + 1
        )  # time and finished problems at batch ends

    def start_batch(self, size: int) -> None:
        """Start a batch of `size` problems."""
        self._batch, self._fraction = size, 0.0
        if not self._marks:
            self._marks.append((self._clock(), self.done))

    def step(self, k: int, steps: int) -> None:
        """Note that `k` of `steps` steps of the batch are done."""
        self._fraction = k / max(steps, 1)

    def advance(self, n: int) -> None:
        """Count `n` finished problems, of the batch or, between batches, of other processes."""
        self.done += n
        if self._batch:
            self._marks.append((self._clock(), self.done))
        self._batch, self._fraction = max(self._batch - n, 0), 0.0

    @property
    def completed(self) -> float:
        """Finished problems, plus the finished fraction of the current batch."""
        return self.done + self._batch * self._fraction

    @property
    def eta(self) -> str | None:
        """The remaining time as "m:ss", None before the first batch is finished."""
        if len(self._marks) < 2:
            return None
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        per_problem = (end - start) / max(after - before, 1)
        remaining = max(self.total - self.done, 0)
        after_batch = max(
            remaining - self._batch, 0
        )  # a lower bound: the current batch may be slower than those before
        seconds = max(per_problem * remaining - (self._clock() - end), per_problem * after_batch)
        return format_duration(seconds if remaining else 0.0)


class ProgressBar:
    """Two lines on a terminal: the problems of the run and the steps of the current batch."""

    def __init__(self, estimate: ProgressEstimate, console: Console) -> None:
        self._estimate = estimate
        self.display = RichProgress(
            TextColumn("{task.fields[title]:<8}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            transient=False,
        )
        self._run: TaskID = self.display.add_task("", total=max(estimate.total, 1), title="problems", text="")
        self._batch: TaskID = self.display.add_task("", total=1, title="batch", text="", visible=False)
        self._refresh()

    def start_batch(self, names: Sequence[str]) -> None:
        self._estimate.start_batch(len(names))
        self.display.update(self._batch, completed=0, text=abbreviate(names), visible=True)

    def set_phase(self, text: str) -> None:
        self.display.update(self._batch, text=text, visible=True)

    def message(self, text: str) -> None:
        self.display.console.print(text, markup=False, highlight=False)

    def step(self, k: int, steps: int, loss: float, confidence: float | None) -> None:
        self._estimate.step(k, steps)
        text = step_text(k, steps, loss, confidence)
        self.display.update(self._batch, completed=k, total=max(steps, 1), text=text, visible=True)
        self._refresh()

    def advance(self, n: int) -> None:
        self._estimate.advance(n)
        self._refresh()

    def _refresh(self) -> None:
        text = f"{self._estimate.done}/{self._estimate.total}{eta_text(self._estimate, '  ')}"
        self.display.update(self._run, completed=self._estimate.completed, text=text)


class ProgressLines:
    """Plain lines for a log file: at the start and the end of a batch and about four times in between."""

    def __init__(self, estimate: ProgressEstimate, console: Console) -> None:
        self._estimate, self._file = estimate, console.file

    def start_batch(self, names: Sequence[str]) -> None:
        self._estimate.start_batch(len(names))
        self._print(f"batch of {len(names)}: {abbreviate(names)}")

    def set_phase(self, text: str) -> None:
        self._print(f"  {text}")

    def message(self, text: str) -> None:
        self._print(f"  {text}")

    def step(self, k: int, steps: int, loss: float, confidence: float | None) -> None:
        self._estimate.step(k, steps)
        if k == steps or k % max(1, steps // 4) == 0:
            self._print(f"  {step_text(k, steps, loss, confidence)}{eta_text(self._estimate, '  ')}")

    def advance(self, n: int) -> None:
        self._estimate.advance(n)
        self._print(f"{self._estimate.done} of {self._estimate.total} problems done{eta_text(self._estimate, ', ')}")

    def _print(self, line: str) -> None:
        print(line, file=self._file, flush=True)


def eta_text(estimate: ProgressEstimate, before: str) -> str:
    """`before` and the remaining time, or nothing if it is unknown."""
    return "" if estimate.eta is None else f"{before}ETA {estimate.eta}"


def step_text(k: int, steps: int, loss: float, confidence: float | None) -> str:
    """A step as text: "step 7/20  loss 1.234  confidence 0.45"."""
    return f"step {k}/{steps}  loss {loss:.3f}" + ("" if confidence is None else f"  confidence {confidence:.2f}")


def abbreviate(names: Sequence[str], max_names: int = 2) -> str:
    """The first `max_names` names and the number of the others."""
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more


def format_duration(seconds: float) -> str:
    """Seconds as "m:ss" or "h:mm:ss"."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"
