"""How far a run is, on the console: a bar, or lines for a log file."""

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

ETA_BATCHES = 3  # batches by which the time left is told
TERMINAL_INTERVAL, LOG_INTERVAL = 0.2, 20.0  # seconds between two counts, on a terminal and in a log file


class Progress(Protocol):
    """What the console shows of a run."""

    def start_batch(self, names: Sequence[str]) -> None:
        """A batch of these problems begins."""

    def set_phase(self, text: str) -> None:
        """What is being done with the batch now, e.g. "preparing"."""

    def message(self, text: str) -> None:
        """Tell something that stays, a line of its own."""

    def step(self, k: int, steps: int, loss: float, confidence: float | None) -> None:
        """`k` of `steps` optimisation steps are done; loss and target confidence are means over the batch."""

    def advance(self, n: int) -> None:
        """`n` more problems are done."""


@contextmanager
def progress(
    total: int, done: int, console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Progress]:
    """Show progress through `total` problems, `done` of them finished before: a bar, or lines without a terminal."""
    console = console or Console(file=sys.stdout)
    pace = ProgressEstimate(total, done, clock)
    if not console.is_terminal:
        lines = ProgressLines(pace, console)
        with show_progress(lines.set_phase, LOG_INTERVAL):
            yield lines
        return
    bar = ProgressBar(pace, console)
    with bar.display, show_progress(bar.set_phase, TERMINAL_INTERVAL):
        yield bar


@contextmanager
def preparing(console: Console | None = None) -> Iterator[None]:
    """Show how far the preparation of a run is, made within: a line that changes, or lines without a terminal."""
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
    """How far a run is and how long the rest takes, by the last batches; what other processes finish meanwhile
    counts, too."""

    def __init__(self, total: int, done: int, clock: Callable[[], float]) -> None:
        self.total, self.done = total, done
        self._clock = clock
        self._batch, self._share = 0, 0.0
        self._marks: deque[tuple[float, int]] = deque(
            maxlen=ETA_BATCHES + 1
        )  # when how many were done, where batches end

    def start_batch(self, size: int) -> None:
        """A batch of `size` problems begins."""
        self._batch, self._share = size, 0.0
        if not self._marks:
            self._marks.append((self._clock(), self.done))

    def step(self, k: int, steps: int) -> None:
        """`k` of `steps` steps of the batch are done."""
        self._share = k / max(steps, 1)

    def advance(self, n: int) -> None:
        """`n` problems are done, of the batch or, where there is none, by other processes."""
        self.done += n
        if self._batch:
            self._marks.append((self._clock(), self.done))
        self._batch, self._share = max(self._batch - n, 0), 0.0

    @property
    def completed(self) -> float:
        """Problems done, those of the present batch in part."""
        return self.done + self._batch * self._share

    @property
    def eta(self) -> str | None:
        """Time left as minutes and seconds, None before the first batch is done."""
        if len(self._marks) < 2:
            return None
        (began, before), (ended, after) = self._marks[0], self._marks[-1]
        each = (ended - began) / max(after - before, 1)
        left = max(self.total - self.done, 0)
        beyond = max(left - self._batch, 0)  # the present batch: it may take longer than those before
        return format_duration(max(each * left - (self._clock() - ended), each * beyond) if left else 0.0)


class ProgressBar:
    """Two lines on a terminal: the run's problems, and the present batch's steps."""

    def __init__(self, pace: ProgressEstimate, console: Console) -> None:
        self._pace = pace
        self.display = RichProgress(
            TextColumn("{task.fields[title]:<8}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            transient=False,
        )
        self._run: TaskID = self.display.add_task("", total=max(pace.total, 1), title="problems", text="")
        self._batch: TaskID = self.display.add_task("", total=1, title="batch", text="", visible=False)
        self._refresh()

    def start_batch(self, names: Sequence[str]) -> None:
        self._pace.start_batch(len(names))
        self.display.update(self._batch, completed=0, text=abbreviate(names), visible=True)

    def set_phase(self, text: str) -> None:
        self.display.update(self._batch, text=text, visible=True)

    def message(self, text: str) -> None:
        self.display.console.print(text, markup=False, highlight=False)

    def step(self, k: int, steps: int, loss: float, confidence: float | None) -> None:
        self._pace.step(k, steps)
        text = step_text(k, steps, loss, confidence)
        self.display.update(self._batch, completed=k, total=max(steps, 1), text=text, visible=True)
        self._refresh()

    def advance(self, n: int) -> None:
        self._pace.advance(n)
        self._refresh()

    def _refresh(self) -> None:
        text = f"{self._pace.done}/{self._pace.total}{eta_text(self._pace, '  ')}"
        self.display.update(self._run, completed=self._pace.completed, text=text)


class ProgressLines:
    """Plain lines for a log file: one where a batch begins and ends, and about four of its steps."""

    def __init__(self, pace: ProgressEstimate, console: Console) -> None:
        self._pace, self._file = pace, console.file

    def start_batch(self, names: Sequence[str]) -> None:
        self._pace.start_batch(len(names))
        self._print(f"batch of {len(names)}: {abbreviate(names)}")

    def set_phase(self, text: str) -> None:
        self._print(f"  {text}")

    def message(self, text: str) -> None:
        self._print(f"  {text}")

    def step(self, k: int, steps: int, loss: float, confidence: float | None) -> None:
        self._pace.step(k, steps)
        if k == steps or k % max(1, steps // 4) == 0:
            self._print(f"  {step_text(k, steps, loss, confidence)}{eta_text(self._pace, '  ')}")

    def advance(self, n: int) -> None:
        self._pace.advance(n)
        self._print(f"{self._pace.done} of {self._pace.total} problems done{eta_text(self._pace, ', ')}")

    def _print(self, line: str) -> None:
        print(line, file=self._file, flush=True)


def eta_text(pace: ProgressEstimate, before: str) -> str:
    """The time left, behind what stands before it; nothing where it is not known."""
    return "" if pace.eta is None else f"{before}ETA {pace.eta}"


def step_text(k: int, steps: int, loss: float, confidence: float | None) -> str:
    """One step in words: "step 7/20  loss 1.234  confidence 0.45"."""
    return f"step {k}/{steps}  loss {loss:.3f}" + ("" if confidence is None else f"  confidence {confidence:.2f}")


def abbreviate(names: Sequence[str], max_names: int = 2) -> str:
    """The first `max_names` names, and how many more there are."""
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more


def format_duration(seconds: float) -> str:
    """Seconds as "m:ss" or "h:mm:ss"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
