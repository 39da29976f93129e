"""What is told while a run goes on: curves and pictures to Weights & Biases, progress to the console.

Neither is the record of a run: that is its JSON and PNG files, which are written whether anything is logged or not.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from runner.types import UserError

if TYPE_CHECKING:
    import wandb

MODES = ("offline", "online")


class Logger(Protocol):
    """Where curves, results and pictures go. `finish` may be called more than once, and before `start`."""

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        """Begin one attempt at the run `key`, whose files lie in `folder`."""

    def log(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        """Note a problem's values at one optimisation step."""

    def result(self, record: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
        """Note a finished problem: its line of results.jsonl and its saved pictures by name."""

    def finish(self) -> None:
        """End the attempt and send or write what is left."""


class NoLogger:
    """A logger that does nothing."""

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        pass

    def log(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        pass

    def result(self, record: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
        pass

    def finish(self) -> None:
        pass


class WandbLogger:
    """Weights & Biases, one W&B run per attempt, grouped by the run's key.

    Attempts are not resumed W&B runs: offline, `resume` is ignored and a second run of the same id replaces the first.
    Each problem has its own section of curves over its own step. W&B's step counts rows of the whole attempt, since it
    must never fall; problems of a batch, logged at the same step, share a row.
    """

    def __init__(self, mode: str, project: str, entity: str | None, timeout: float) -> None:
        """mode: one of `MODES`; timeout: seconds to wait for the server when a run starts online."""
        if mode not in MODES:
            raise UserError(f"logger.mode={mode}: allowed are {', '.join(MODES)}; logger=none switches logging off")
        self.mode, self.project, self.entity, self.timeout = mode, project, entity, timeout
        self._run: wandb.Run | None = None
        self._row = 0
        self._step: int | None = None
        self._problems: set[str] = set()
        self._successes: list[bool] = []

    def start(self, folder: Path, config: dict[str, Any], key: str, task: str) -> None:
        self.finish()
        wandb = _import_wandb()
        attempt = 1 + sum(path.is_dir() for path in folder.glob("wandb/*run-*"))
        settings = wandb.Settings(console="off", silent=True, init_timeout=self.timeout, x_disable_stats=True)
        try:
            wandb.setup(wandb.Settings(silent=True))  # process-wide: without it a terminal is asked for a key
            self._run = wandb.init(
                mode="online" if self.mode == "online" else "offline",
                project=self.project,
                entity=self.entity,
                dir=folder,
                name=f"{task}-{key}-{attempt}",
                group=key,
                job_type=f"attempt-{attempt}",
                tags=[task],
                config=config,
                reinit="finish_previous",
                settings=settings,
            )
        except wandb.Error as error:
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            advice = "run `wandb login`, or use logger.mode=offline or logger=none"
            raise UserError(f"logger.mode={self.mode}: {reason}; {advice}") from error
        self._row, self._step = 0, None
        self._problems, self._successes = set(), []

    def log(self, problem: str, step: int, values: Mapping[str, float]) -> None:
        if self._run is None:
            return
        if problem not in self._problems:
            self._problems.add(problem)
            self._run.define_metric(f"{problem}/*", step_metric=f"{problem}/step")
        self._advance(step)
        curves = {f"{problem}/{name}": value for name, value in values.items()}
        self._run.log({f"{problem}/step": step, **curves}, step=self._row)

    def result(self, record: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
        if self._run is None:
            return
        wandb = _import_wandb()
        self._advance(None)
        numbers = {f"result/{k}": float(v) for k, v in record.items() if isinstance(v, (bool, int, float))}
        images = [wandb.Image(str(path), caption=name) for name, path in pictures.items() if path.is_file()]
        panel = {f"pictures/{record['name']}": images} if images else {}
        self._run.log({**numbers, **panel}, step=self._row)
        if isinstance(record.get("success"), bool):
            self._successes.append(record["success"])
            self._run.summary["success_rate"] = sum(self._successes) / len(self._successes)
            self._run.summary["judged"] = len(self._successes)

    def finish(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish()

    def _advance(self, step: int | None) -> None:
        """Begin a new row unless `step` is that of the present row; None always begins one."""
        if step is None or step != self._step:
            self._row += 1
        self._step = step


def _import_wandb() -> ModuleType:
    """W&B, imported when first used: it is slow to import. Its crash reports, which go out even offline, stay off."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


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
