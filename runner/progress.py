"""How far a run is, on the console: a bar, or lines for a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """What the console shows of a run."""

    def batch(self, names: Sequence[str]) -> None:
        """A batch of these problems begins."""

    def phase(self, text: str) -> None:
        """What is being done with the batch now, e.g. "preparing"."""

    def say(self, text: str) -> None:
        """Tell something that stays, a line of its own."""

    def step(self, k: int, steps: int, loss: float, confidence: float | None) -> None:
        """`k` of `steps` optimisation steps are done; loss and target confidence are means over the batch."""

    def finished(self, n: int) -> None:
        """`n` more problems are done."""


@contextmanager
def progress(
    total: int, done: int, console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Progress]:
    """Show progress through `total` problems, `done` of them finished before: a bar, or lines without a terminal."""
    console = console or Console(file=sys.stdout)
    pace = Pace(total, done, clock)
    if not console.is_terminal:
        yield Lines(pace, console)
        return
    bar = Bar(pace, console)
    with bar.display:
        yield bar


class Pace:
    """How far a run is and how long the rest takes at the speed so far."""

    def __init__(self, total: int, done: int, clock: Callable[[], float]) -> None:
        self.total, self.done = total, done
        self._clock, self._began, self._already = clock, clock(), done
        self._batch, self._share = 0, 0.0

    def batch(self, size: int) -> None:
        """A batch of `size` problems begins."""
        self._batch, self._share = size, 0.0

    def step(self, k: int, steps: int) -> None:
        """`k` of `steps` steps of the batch are done."""
        self._share = k / max(steps, 1)

    def finished(self, n: int) -> None:
        """`n` problems of the batch are done."""
        self.done, self._batch, self._share = self.done + n, max(self._batch - n, 0), 0.0

    @property
    def progressed(self) -> float:
        """Problems done, those of the present batch in part."""
        return self.done + self._batch * self._share

    @property
    def eta(self) -> str:
        """Time left as minutes and seconds, or "?" before anything is known."""
        fresh = self.progressed - self._already
        if fresh <= 0:
            return "?"
        return duration((self._clock() - self._began) / fresh * max(self.total - self.progressed, 0))


class Bar:
    """Two lines on a terminal: the run's problems, and the present batch's steps."""

    def __init__(self, pace: Pace, console: Console) -> None:
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

    def batch(self, names: Sequence[str]) -> None:
        self._pace.batch(len(names))
        self.display.update(self._batch, completed=0, text=shortened(names), visible=True)

    def phase(self, text: str) -> None:
        self.display.update(self._batch, text=text, visible=True)

    def say(self, text: str) -> None:
        self.display.console.print(text, markup=False, highlight=False)

    def step(self, k: int, steps: int, loss: float, confidence: float | None) -> None:
        self._pace.step(k, steps)
        text = step_text(k, steps, loss, confidence)
        self.display.update(self._batch, completed=k, total=max(steps, 1), text=text, visible=True)
        self._refresh()

    def finished(self, n: int) -> None:
        self._pace.finished(n)
        self._refresh()

    def _refresh(self) -> None:
        text = f"{self._pace.done}/{self._pace.total}  ETA {self._pace.eta}"
        self.display.update(self._run, completed=self._pace.progressed, text=text)


class Lines:
    """Plain lines for a log file: one where a batch begins and ends, and about four of its steps."""

    def __init__(self, pace: Pace, console: Console) -> None:
        self._pace, self._file = pace, console.file

    def batch(self, names: Sequence[str]) -> None:
        self._pace.batch(len(names))
        self._print(f"batch of {len(names)}: {shortened(names)}")

    def phase(self, text: str) -> None:
        self._print(f"  {text}")

    def say(self, text: str) -> None:
        self._print(f"  {text}")

    def step(self, k: int, steps: int, loss: float, confidence: float | None) -> None:
        self._pace.step(k, steps)
        if k == steps or k % max(1, steps // 4) == 0:
            self._print(f"  {step_text(k, steps, loss, confidence)}  ETA {self._pace.eta}")

    def finished(self, n: int) -> None:
        self._pace.finished(n)
        self._print(f"{self._pace.done} of {self._pace.total} problems done, ETA {self._pace.eta}")

    def _print(self, line: str) -> None:
        print(line, file=self._file, flush=True)


def step_text(k: int, steps: int, loss: float, confidence: float | None) -> str:
    """One step in words: "step 7/20  loss 1.234  confidence 0.45"."""
    return f"step {k}/{steps}  loss {loss:.3f}" + ("" if confidence is None else f"  confidence {confidence:.2f}")


def shortened(names: Sequence[str], most: int = 2) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def duration(seconds: float) -> str:
    """Seconds as "m:ss" or "h:mm:ss"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
