"""A run: cut the problems into batches and, for each not done, begin, optimise, measure, record."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.diffusion import LatentDiffusion
from runner import checkpoint, optimize
from runner.augment import RandomCrops
from runner.baselines import contestant
from runner.interrupt import Interrupt, Stopped
from runner.logging import Logger, Progress, progress
from runner.optimize import Descent, State
from runner.record import RunFolder, read_png, run_key, write_png
from runner.report import write_report
from runner.types import Anchor, Classifier, Controls, Dataset, Generator, Problem, Task, UserError

STOPPED, BAD_INPUT, FAILED, DONE = 143, 2, 1, 0  # exit codes


@dataclass(frozen=True)
class Parts:
    """The objects of a run, each built once."""

    generator: LatentDiffusion
    classifier: Classifier
    data: Dataset
    task: Task
    optimizer: Descent
    augment: RandomCrops
    logger: Logger


@dataclass(frozen=True)
class Shard:
    """Of every `count` batches this process takes the one at `index`."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not (self.count >= 1 and 0 <= self.index < self.count):
            raise UserError(f"shard.index={self.index} shard.count={self.count}: index must be in 0 … count - 1")


@dataclass(frozen=True)
class Solver:
    """What turns a batch of problems into pictures."""

    generator: Generator
    descent: Descent
    classifier: Classifier
    task: Task
    augment: RandomCrops

    def start(self, problems: Sequence[Problem]) -> tuple[Controls, Anchor, Sequence[Sequence[str]]]:
        """Invert, find the region, choose the best of the candidate schedules; notes per problem."""
        start = self.generator.begin(problems)
        objective = self.task.objective(problems, start.anchors[0], self.classifier)
        return (
            start.controls,
            optimize.choose_start(self.generator, start.controls, start.anchors, objective),
            start.notes,
        )

    def states(self, problems: Sequence[Problem], anchor: Anchor, state: State) -> Iterator[State]:
        """The descent from a state on."""
        seeds = [p.seed for p in problems]
        objective = self.task.objective(problems, anchor, self.classifier)
        return optimize.optimise(
            self.generator, anchor, objective,
            lambda scene, k: self.augment(scene, seeds, k, self.classifier.size), self.descent, state,
        )  # fmt: skip

    @torch.no_grad()
    def render(self, controls: Controls, anchor: Anchor) -> Tensor:
        """The picture that counts, (b, 3, h, w) in [0, 1]."""
        return self.generator(controls, anchor)[-1].image


def solver(parts: Parts) -> Solver:
    """The solver that a task's `baseline` asks for, with the rates in the generator's own scale."""
    generator, descent = contestant(parts.task.baseline, parts.generator, parts.optimizer)
    scaled = {name: rate * generator.lr_scale.get(name, 1.0) for name, rate in descent.lr.items()}
    return Solver(generator, replace(descent, lr=scaled), parts.classifier, parts.task, parts.augment)


def run(parts: Parts, config: Mapping[str, Any]) -> int:
    """Do what `config` (resolved, plain) asks for and leave it in the run folder; returns the exit code."""
    shard = Shard(**config["shard"])
    _check_counts(
        {"limit": config["limit"], "batch": config["batch"], "checkpoint.every": config["checkpoint"]["every"]}
    )
    answer = solver(parts)
    problems, total = parts.task.problems(
        parts.data, parts.classifier, parts.generator.resolution, config["seed"], config["limit"]
    )
    answer.generator.check(problems)
    key = run_key(config, [parts.generator.digest, parts.classifier.digest])
    folder = RunFolder(Path(config["outputs"]) / config["name"] / key)
    names = [p.name for p in problems]
    size = config["batch"]
    batches = [problems[i : i + size] for i in range(0, len(problems), size)][shard.index :: shard.count]
    open_batches = [batch for batch in batches if not all(folder.done(p.name) for p in batch)]
    print(f"{config['name']}: {len(problems)} of {total} problems -> {folder.path}", flush=True)

    interrupt = Interrupt()
    state, reason, code = "running", "", DONE
    try:
        with interrupt.listening():
            folder.write_config(config)
            folder.collect(names, "running", "")
            parts.logger.start(folder.path, dict(config), key, config["name"].split("/")[0])
            with progress(len(problems), sum(map(folder.done, names))) as bar:
                for batch in open_batches:
                    start = problems.index(batch[0])
                    solve_batch(answer, batch, folder, folder.checkpoint(start, start + len(batch)),
                                config["checkpoint"]["every"], interrupt, bar, parts.logger)  # fmt: skip
                    folder.collect(names, "running", "")
                    write_report(folder.path)
        state = "done"
    except Stopped as stop:
        state, reason, code = "stopped", f"stopped by {stop}; the same command continues", STOPPED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        state, reason, code = "failed", f"disk full: {folder.path} (outputs={config['outputs']})", FAILED
    finally:
        if state == "running":
            state, reason = "failed", str(sys.exception() or "")
        parts.logger.finish()
        status = _collect(folder, names, state, reason)
    return _say(folder, status, code, reason)


def _check_counts(counts: Mapping[str, int | None]) -> None:
    """Raise UserError for a number below 1; null is no number."""
    for key, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"{key}={value}: allowed are 1 and above{', or null for all' if key == 'limit' else ''}")


def _collect(folder: RunFolder, names: Sequence[str], state: str, reason: str) -> dict[str, Any]:
    """The final status; on a full disk what could be written before stays."""
    try:
        status = folder.collect(names, state, reason)
        write_report(folder.path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return {"failures": [], "failed": 0, "pending": len(names)}
    return status


def _say(folder: RunFolder, status: Mapping[str, Any], code: int, reason: str) -> int:
    """The last lines of a run and its exit code."""
    for failure in status["failures"]:
        print(f"failed: {failure['name']}: {failure['error']}", file=sys.stderr)
    if code == DONE:
        print(f"page: {(folder.path / 'index.html').resolve()}", flush=True)
        return FAILED if status["failed"] else DONE
    print(reason, file=sys.stderr, flush=True)
    return code


def solve_batch(
    answer: Solver, problems: Sequence[Problem], folder: RunFolder, path: Path, every: int, interrupt: Interrupt,
    bar: Progress, logger: Logger,
) -> None:  # fmt: skip
    """One batch from where it stands to its results; its state is saved every so many steps and when stopped."""
    clock = time.monotonic()
    bar.batch([p.name for p in problems])
    bar.phase("inverting")
    controls, anchor, notes = answer.start(problems)
    state = checkpoint.load(path, anchor.original.device) if path.exists() else optimize.begin(controls)
    before = state.seconds
    states = answer.states(problems, anchor, state)
    while not state.finished:
        with interrupt.deferred():
            state = next(states)
            state.seconds = before + time.monotonic() - clock
            try:
                interrupt.check()
            except Stopped:
                checkpoint.save(path, state)
                raise
            if state.step % every == 0 or state.finished:
                checkpoint.save(path, state)
        _tell(state, problems, answer.descent.steps, bar, logger)
    bar.phase("measuring")
    with torch.no_grad():
        starts, bests = answer.render(controls, anchor), answer.render(state.best, anchor)
    for i, problem in enumerate(problems):
        if not folder.done(problem.name):
            pictures = {
                "original": anchor.original[i], "start": starts[i], "best": bests[i], "mask": anchor.mask[i],
            }  # fmt: skip
            write_problem(answer, problem, i, state, pictures, notes[i], anchor, folder, len(problems), logger)
    path.unlink(missing_ok=True)
    bar.finished(len(problems))


def _tell(state: State, problems: Sequence[Problem], steps: int, bar: Progress, logger: Logger) -> None:
    """Curves to the logger, means to the console."""
    latest = state.history[-1]
    evaluated = len(state.history) - 1
    for i, problem in enumerate(problems):
        logger.log(problem.name, evaluated, _curve(latest, i))
    confidence = [c for i in range(len(problems)) if (c := _curve(latest, i).get("confidence")) is not None]
    bar.step(
        evaluated, steps, sum(latest["total"]) / len(problems),
        sum(confidence) / len(confidence) if confidence else None,
    )  # fmt: skip


def _curve(values: Mapping[str, Sequence[float]], i: int) -> dict[str, float]:
    """One sample's values of an evaluation, with the target's confidence where a log-probability is among them."""
    row = {name: value[i] for name, value in values.items()}
    if "class_log_prob" in row:
        row["confidence"] = float(torch.tensor(-row["class_log_prob"]).exp())
    return row


def write_problem(
    answer: Solver, problem: Problem, i: int, state: State, pictures: dict[str, Tensor], notes: Sequence[str],
    anchor: Anchor, folder: RunFolder, batch: int, logger: Logger,
) -> None:  # fmt: skip
    """Save a problem's pictures, measure the saved ones and write its result, or why there is none."""
    if (reason := state.failed[i]) is not None:
        folder.write_failure(problem.name, reason)
        return
    place = folder.problem(problem.name)
    for name, picture in pictures.items():
        write_png(place / f"{name}.png", picture)
    original, best = read_png(place / "original.png"), read_png(place / "best.png")
    write_png(place / "difference.png", (best - original).abs())
    device = anchor.original.device
    step = int(state.best_step[i])
    files = {name: place / f"{name}.png" for name in (*pictures, "difference")}
    record = {
        "name": problem.name,
        **answer.task.measure(problem, original.to(device), best.to(device), answer.classifier),
        "caption": problem.edit.source,
        "prompt": problem.edit.target,
        "loss": {name: values[i] for name, values in state.history[step].items()},
        "steps": answer.descent.steps,
        "best_step": step,
        "inject": round(anchor.inject[i].item(), 6),
        "blend": round(anchor.blend[i].item(), 6),
        "seconds": round(state.seconds / batch, 2),
        "seed": problem.seed,
        "warnings": list(notes),
        "images": {name: str(path.relative_to(folder.path)) for name, path in files.items()},
        "history": [{"step": k, **_curve(values, i)} for k, values in enumerate(state.history)],
    }
    folder.write_result(problem.name, record)
    logger.result(record, files)
