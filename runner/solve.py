"""A batch of problems from where it stands to its results."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from runner import checkpoint, optimize
from runner.augment import RandomCrops
from runner.baselines import Contestant
from runner.claims import Claim
from runner.interrupt import Interrupt, Stopped
from runner.logging import Logger
from runner.objective import evaluate
from runner.optimize import Choice, Descent, State
from runner.progress import Progress
from runner.protocols import Classifier, Generator, Screen, Task
from runner.record import RunFolder, to_8_bits, write, write_png
from runner.types import Anchor, Controls, Objective, Problem, Scene
from runner.warn import Doubts

WRITERS = 8  # threads that compress pictures, most of a picture's time, while others are measured


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

    def start(
        self, problems: Sequence[Problem], choice: Choice | None = None
    ) -> tuple[Controls, Anchor, Sequence[Sequence[str]], Choice]:
        """Invert or draw, find the region, choose the best of the candidates unless it is known already; notes per
        problem."""
        begin = self.contestant.begin
        start = begin.begin(problems, self.task.schedules)
        objective = self.objective(problems, start.anchors[0])
        choice = choice or optimize.choose(begin, start, objective)
        controls, anchor = optimize.beginning(start, choice)
        return self.contestant.finish(controls, anchor, objective), anchor, start.notes, choice

    def states(self, problems: Sequence[Problem], anchor: Anchor, state: State) -> Iterator[State]:
        """The descent from a state on."""
        seeds = [p.seed for p in problems]

        def augment(scene: Scene, k: int) -> Scene:
            return self.augment(scene, seeds, k, self.classifier.size) if self.contestant.augmented else scene

        return optimize.optimise(self.generator, anchor, self.objective(problems, anchor), augment, self.descent, state)

    @torch.no_grad()
    def losses(self, problems: Sequence[Problem], anchor: Anchor, state: State) -> list[dict[str, float]]:
        """The terms and their total of each sample's best step."""
        final = self.generator.final(anchor)
        if final is anchor:
            steps = [state.history[int(k)] for k in state.best_step]
        else:
            loss = evaluate(self.objective(problems, anchor), self.generator(state.best, final)[-1])
            steps = [{name: v.tolist() for name, v in {**loss.parts, "total": loss.total}.items()}] * len(problems)
        return [{name: values[i] for name, values in step.items()} for i, step in enumerate(steps)]

    def render(self, controls: Controls, anchor: Anchor) -> tuple[Tensor, Sequence[int]]:
        """The pictures that are reported, (b, n, 3, h, w) in [0, 1], of which the first is the one that counts; and how
        many of each problem's were flagged as unsafe, and are blurred."""
        pictures = self.generator.pictures(controls, anchor)
        if self.safety is None:
            return pictures, [0] * len(pictures)
        screened, flags = self.safety(pictures.flatten(0, 1))
        return screened.view_as(pictures), flags.view(pictures.shape[:2]).sum(dim=1).tolist()


def solve_batch(
    answer: Solver, problems: Sequence[Problem], folder: RunFolder, path: Path, every: int, interrupt: Interrupt,
    claim: Claim, bar: Progress, logger: Logger,
) -> None:  # fmt: skip
    """One batch from where it stands to its results; its state is saved every so many steps and when stopped. Raises
    Lost if another process has taken it over."""
    clock = time.monotonic()
    bar.batch([p.name for p in problems])
    bar.phase("preparing")
    saved = path.exists()
    controls, anchor, notes, choice = answer.start(problems, checkpoint.load_choice(path) if saved else None)
    state = checkpoint.load(path, anchor.original.device) if saved else optimize.begin(controls, choice)
    before = state.seconds
    states = answer.states(problems, anchor, state)
    while not state.finished:
        with interrupt.deferred():
            state = next(states)
            state.seconds = before + time.monotonic() - clock
            claim.check()
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
    prompts, losses = answer.generator.worded(state.best, anchor), answer.losses(problems, anchor, state)
    doubts = answer.doubts(problems, anchor, starts[:, 0], state)
    with ThreadPoolExecutor(WRITERS, "picture") as writers:
        for i, problem in enumerate(problems):
            if folder.done(problem.name):
                continue
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
            write_problem(
                answer, problem, i, state, losses[i], pictures, prompt, warnings, anchor, folder, len(problems), logger,
                writers,
            )  # fmt: skip
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
    """Pictures in a folder as their files hold them: what is reported is measured on that. The files are there when
    `wait` returns."""

    place: Path
    writers: Executor
    pictures: dict[str, Tensor] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    begun: list[Future[None]] = field(default_factory=list)

    def add(self, pictures: Mapping[str, Tensor]) -> None:
        """Begin to save pictures (c, h, w) in [0, 1] under their names."""
        for name, picture in pictures.items():
            self.files[name] = self.place / f"{name}.png"
            self.pictures[name] = to_8_bits(picture).cpu()
            self.begun.append(self.writers.submit(write_png, self.files[name], self.pictures[name]))

    def wait(self) -> None:
        """Raises what kept a file from being written."""
        for writing in self.begun:
            writing.result()


def write_problem(
    answer: Solver, problem: Problem, i: int, state: State, loss: Mapping[str, float], pictures: dict[str, Tensor],
    prompt: str, notes: Sequence[str], anchor: Anchor, folder: RunFolder, batch: int, logger: Logger, writers: Executor,
) -> None:  # fmt: skip
    """Save a problem's pictures and what they can be made again from, measure the saved ones and write its result, or
    why there is none."""
    if (reason := state.failed[i]) is not None:
        folder.write_failure(problem.name, reason)
        return
    saved = Saved(folder.problem(problem.name), writers)
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
        "loss": dict(loss),
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
    saved.wait()
    folder.write_result(problem.name, record)
    logger.result(record, saved.files)
