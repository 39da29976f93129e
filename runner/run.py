"""A run: cut the problems into batches and, for each not done, begin, optimise, measure, record."""

from __future__ import annotations

import errno
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from models.diffusion import LatentDiffusion
from runner import checkpoint, optimize
from runner.augment import RandomCrops
from runner.baselines import Baseline, Contestant, Parametrise
from runner.interrupt import Interrupt, Stopped
from runner.logging import Logger, Progress, progress
from runner.optimize import Descent, State
from runner.record import RunFolder, Summarise, read_png, run_key, write, write_png
from runner.report import write_report
from runner.types import (
    Anchor,
    Classifier,
    Controls,
    Dataset,
    Generator,
    Objective,
    Problem,
    Scene,
    Screen,
    Task,
    UserError,
    World,
)  # fmt: skip
from runner.warn import Doubts

STOPPED, BAD_INPUT, FAILED, DONE = 143, 2, 1, 0  # exit codes


@dataclass(frozen=True)
class Parts:
    """The objects of a run, each built once."""

    generator: LatentDiffusion
    classifier: Classifier
    data: Dataset
    task: Task
    controls: Parametrise
    baseline: Mapping[str, Baseline]
    optimizer: Descent
    augment: RandomCrops
    logger: Logger
    safety: Screen | None = None

    @property
    def digests(self) -> list[str]:
        """Of the weights that results follow from."""
        others = [network.digest for network in self.task.networks]
        safety = [] if self.safety is None else [self.safety.digest]
        return [self.generator.digest, self.classifier.digest, *others, *safety]


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

    contestant: Contestant
    classifier: Classifier
    task: Task
    augment: RandomCrops
    doubts: Doubts
    safety: Screen | None

    @property
    def generator(self) -> Generator:
        return self.contestant.generator

    @property
    def descent(self) -> Descent:
        return self.contestant.descent

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise UserError for what can be seen to fail before anything is computed."""
        self.contestant.begin.check(problems)

    def objective(self, problems: Sequence[Problem], anchor: Anchor) -> Objective:
        """The task's, as the contestant takes it."""
        return self.contestant.objective(self.task.objective(problems, anchor, self.classifier))

    def start(self, problems: Sequence[Problem]) -> tuple[Controls, Anchor, Sequence[Sequence[str]]]:
        """Invert or draw, find the region, choose the best of the candidate schedules; notes per problem."""
        begin = self.contestant.begin
        start = begin.begin(problems, self.task.schedules)
        objective = self.objective(problems, start.anchors[0])
        controls, anchor = optimize.choose_start(begin, start, objective)
        return self.contestant.finish(controls, anchor, objective), anchor, start.notes

    def states(self, problems: Sequence[Problem], anchor: Anchor, state: State) -> Iterator[State]:
        """The descent from a state on."""
        seeds = [p.seed for p in problems]

        def augment(scene: Scene, k: int) -> Scene:
            return self.augment(scene, seeds, k, self.classifier.size) if self.contestant.augmented else scene

        return optimize.optimise(self.generator, anchor, self.objective(problems, anchor), augment, self.descent, state)

    def render(self, controls: Controls, anchor: Anchor) -> tuple[Tensor, Sequence[int]]:
        """The pictures that are reported, (b, n, 3, h, w) in [0, 1], of which the first is the one that counts; and how
        many of each problem's were flagged as unsafe, and are blurred."""
        pictures = self.generator.pictures(controls, anchor)
        if self.safety is None:
            return pictures, [0] * len(pictures)
        screened, flags = self.safety(pictures.flatten(0, 1))
        return screened.view_as(pictures), flags.view(pictures.shape[:2]).sum(dim=1).tolist()


def solver(parts: Parts) -> Solver:
    """The solver that a task's `baseline` asks for, with the rates in the generator's own scale."""
    scaled = {name: rate * parts.generator.lr_scale.get(name, 1.0) for name, rate in parts.optimizer.lr.items()}
    baseline = parts.baseline[parts.task.baseline]
    chosen = baseline(parts.generator, parts.controls, replace(parts.optimizer, lr=scaled))
    doubts = Doubts(parts.generator, parts.classifier)
    return Solver(chosen, parts.classifier, parts.task, parts.augment, doubts, parts.safety)


def run(parts: Parts, config: Mapping[str, Any]) -> int:
    """Do what `config` (resolved, plain) asks for and leave it in the run folder; returns the exit code."""
    shard = Shard(**config["shard"])
    _check_counts(
        {"limit": config["limit"], "batch": config["batch"], "checkpoint.every": config["checkpoint"]["every"]}
    )
    answer = solver(parts)
    world = World(parts.data, parts.classifier, parts.generator, config["seed"], config["limit"])
    problems, total = parts.task.problems(world)
    answer.check(problems)
    key = run_key(config, parts.digests)
    folder = RunFolder(Path(config["outputs"]) / config["name"] / key)
    names = [p.name for p in problems]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{config['name']}: {twice[0]} is asked {names.count(twice[0])} times; name it once")
    size = config["batch"]
    batches = [problems[i : i + size] for i in range(0, len(problems), size)][shard.index :: shard.count]
    open_batches = [batch for batch in batches if not all(folder.done(p.name) for p in batch)]
    of = "" if total is None else f" of {total}"
    print(f"{config['name']}: {len(problems)}{of} problems -> {folder.path}", flush=True)

    interrupt = Interrupt()
    state, reason, code = "running", "", DONE
    try:
        with interrupt.listening():
            folder.write_config(config)
            folder.collect(names, "running", "", parts.task.summarise)
            parts.logger.start(folder.path, dict(config), key, config["name"].split("/")[0])
            with progress(len(problems), sum(map(folder.done, names))) as bar:
                for batch in open_batches:
                    start = problems.index(batch[0])
                    solve_batch(answer, batch, folder, folder.checkpoint(start, start + len(batch)),
                                config["checkpoint"]["every"], interrupt, bar, parts.logger)  # fmt: skip
                    folder.collect(names, "running", "", parts.task.summarise)
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
        status = _collect(folder, names, state, reason, parts.task.summarise)
    return _say(folder, status, code, reason)


def _check_counts(counts: Mapping[str, int | None]) -> None:
    """Raise UserError for a number below 1; null is no number."""
    for key, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"{key}={value}: allowed are 1 and above{', or null for all' if key == 'limit' else ''}")


def _collect(
    folder: RunFolder, names: Sequence[str], state: str, reason: str, summarise: Summarise
) -> dict[str, Any]:  # fmt: skip
    """The final status; on a full disk what could be written before stays."""
    try:
        status = folder.collect(names, state, reason, summarise)
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
    bar.phase("preparing")
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
        (starts, _), (bests, flagged) = answer.render(controls, anchor), answer.render(state.best, anchor)
    prompts = answer.generator.worded(state.best, anchor)
    doubts = answer.doubts(problems, anchor, starts[:, 0], state)
    for i, problem in enumerate(problems):
        if not folder.done(problem.name):
            pictures = {"start": starts[i, 0], "best": bests[i, 0]}
            pictures |= {f"sample_{j:02}": picture for j, picture in enumerate(bests[i, 1:], start=1)}
            if problem.image is not None or problem.edit.source != problem.edit.target:
                pictures = {"original": anchor.original[i], **pictures}  # drawn with the first words if not given
            if problem.keep in ("background", "foreground"):
                pictures["mask"] = anchor.mask[i]
            hidden = safety_notes(flagged[i], bests.shape[1])
            warnings = [*_caption_notes(answer.task, problem), *notes[i], *doubts[i], *hidden]
            for warning in warnings:
                bar.say(f"{problem.name}: {warning}")
            prompt = problem.edit.target if prompts is None else prompts[i]
            write_problem(answer, problem, i, state, pictures, prompt, warnings, anchor, folder, len(problems), logger)
    path.unlink(missing_ok=True)
    bar.finished(len(problems))


def safety_notes(flagged: int, count: int) -> list[str]:
    """What the reader has to know of pictures that were kept from being seen."""
    return [f"{flagged} of {count} pictures were flagged as unsafe and are blurred"] if flagged else []


def _caption_notes(task: Task, problem: Problem) -> list[str]:
    """What the captioner has to say of the problem's caption."""
    note = None if task.captioner is None else task.captioner.notes.get(problem.picture)
    return [] if note is None else [note]


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


@dataclass
class Saved:
    """Pictures in a folder, and what their files hold: what is reported is measured on that."""

    place: Path
    pictures: dict[str, Tensor] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def add(self, pictures: Mapping[str, Tensor]) -> None:
        """Save pictures (c, h, w) in [0, 1] under their names, and read them back with as many channels."""
        for name, picture in pictures.items():
            self.files[name] = self.place / f"{name}.png"
            write_png(self.files[name], picture)
            self.pictures[name] = read_png(self.files[name])[: len(picture)]


def write_problem(
    answer: Solver, problem: Problem, i: int, state: State, pictures: dict[str, Tensor], prompt: str,
    notes: Sequence[str], anchor: Anchor, folder: RunFolder, batch: int, logger: Logger,
) -> None:  # fmt: skip
    """Save a problem's pictures and what they can be made again from, measure the saved ones and write its result, or
    why there is none."""
    if (reason := state.failed[i]) is not None:
        folder.write_failure(problem.name, reason)
        return
    saved = Saved(folder.problem(problem.name))
    if lasting := {name: state.best[name][i].cpu().contiguous() for name in answer.generator.lasting}:
        controls = saved.place / "controls.safetensors"
        write(controls, serialise(lasting, metadata={"prompt": problem.edit.target}))
    saved.add(pictures)
    before = "original" if "original" in pictures else "start"
    shown = {**saved.pictures, "before": saved.pictures[before]}
    saved.add({"difference": (shown["best"] - shown["before"]).abs()})
    device = anchor.original.device
    shown = {name: picture.to(device) for name, picture in shown.items()}
    saved.add(answer.task.illustrate(problem, shown, answer.classifier))
    shown |= {name: picture.to(device) for name, picture in saved.pictures.items()}
    step = int(state.best_step[i])
    record = {
        "name": problem.name,
        "picture": problem.picture,
        **answer.task.measure(problem, shown, answer.classifier),
        "caption": problem.edit.source,
        "prompt": prompt,
        "loss": {name: values[i] for name, values in state.history[step].items()},
        "steps": answer.descent.steps,
        "best_step": step,
        "inject": round(anchor.inject[i].item(), 6),
        "blend": round(anchor.blend[i].item(), 6),
        "seconds": round(state.seconds / batch, 2),
        "seed": problem.seed,
        "warnings": list(notes),
        "keep": problem.keep,
        "images": {name: str(path.relative_to(folder.path)) for name, path in saved.files.items()},
        **({"controls": str(controls.relative_to(folder.path))} if lasting else {}),
        "history": [{"step": k, **_curve(values, i)} for k, values in enumerate(state.history)],
    }
    folder.write_result(problem.name, record)
    logger.result(record, saved.files)
