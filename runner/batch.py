"""A batch of problems from where it stands to its results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from classifier_lens.runner.baselines.methods import Contestant
from classifier_lens.runner.cluster.leases import Claim
from classifier_lens.runner.cluster.signals import Interrupt, Stopped
from classifier_lens.runner.files.atomic import Damaged, remove, remove_unfinished, set_aside
from classifier_lens.runner.logging.logger import Logger
from classifier_lens.runner.logging.progress_bar import Progress
from classifier_lens.runner.optimization import checkpoint, loop
from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.optimization.loop import Descent, Origin, State
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.protocols import Classifier, Generator, Screen, Task
from classifier_lens.runner.results.manifest import digests_of
from classifier_lens.runner.results.problem_results import Answers, curve, write_answer
from classifier_lens.runner.results.result_warnings import Doubts
from classifier_lens.runner.results.run_folder import RunFolder
from classifier_lens.runner.retry import Failure
from classifier_lens.runner.types import Anchor, Controls, NotFinite, Objective, Problem, Scene

WRITERS = 8  # threads that compress pictures, most of a picture's time, while others are measured


@dataclass(frozen=True)
class Solver:
    """What turns a batch of problems into answers. device: where the generator computes; formats: what a failure adds
    of the number formats, where they are not float32."""

    contestant: Contestant
    classifier: Classifier
    task: Task
    augment: RandomCrops
    doubts: Doubts
    safety: Screen | None
    device: torch.device
    formats: str = ""

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
        self, problems: Sequence[Problem], origin: Origin | None = None
    ) -> tuple[Controls, Anchor, Sequence[Sequence[str]], Origin]:
        """Invert or draw, find the region, choose the best of the candidates; or, from their origin, begin again as
        before. Notes per problem."""
        begin = self.contestant.begin
        if origin is None:
            start = begin.begin(problems, self.task.schedules)
        else:
            start = begin.begin(problems, origin.schedules, origin.found)
        objective = self.objective(problems, start.anchors[0])
        origin = origin or loop.choose(begin, start, objective)
        controls, anchor = loop.beginning(start, origin)
        return self.contestant.finish(controls, anchor, objective), anchor, start.notes, origin

    def states(self, problems: Sequence[Problem], anchor: Anchor, state: State) -> Iterator[State]:
        """The descent from a state on."""
        seeds = [p.seed for p in problems]

        def augment(scene: Scene, k: int) -> Scene:
            return self.augment(scene, seeds, k, self.classifier.size) if self.contestant.augmented else scene

        return loop.optimise(self.generator, anchor, self.objective(problems, anchor), augment, self.descent, state)

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

    @torch.no_grad()
    def answers(
        self, problems: Sequence[Problem], controls: Controls, anchor: Anchor, state: State,
        notes: Sequence[Sequence[str]],
    ) -> Answers:  # fmt: skip
        """What was found from a batch's first controls on; notes: of its beginning."""
        (starts, _), (bests, flagged) = self.render(controls, anchor), self.render(state.best, anchor)
        prompts = self.generator.worded(state.best, anchor) or [problem.edit.target for problem in problems]
        doubts = self.doubts(problems, anchor, starts[:, 0], state)
        told = [
            [*_caption_notes(self.task, problem), *notes[i], *doubts[i], *_safety_notes(flagged[i], bests.shape[1])]
            for i, problem in enumerate(problems)
        ]
        losses, lasting = self.losses(problems, anchor, state), self.generator.lasting
        return Answers(problems, anchor, state, self.descent.steps, lasting, starts, bests, prompts, losses, told)


def solve_batch(
    answer: Solver, problems: Sequence[Problem], folder: RunFolder, path: Path, every: int, interrupt: Interrupt,
    claim: Claim, bar: Progress, logger: Logger, told: Sequence[str] = (),
) -> None:  # fmt: skip
    """One batch from where it stands to its results; its state is saved every so many steps and when stopped. told:
    notes for all its records. Raises Lost if another process has taken it over."""
    clock = time.monotonic()
    bar.batch([p.name for p in problems])
    bar.phase("preparing")
    owner = {"run": folder.path.name, "list of problems": json.dumps({p.name: digests_of(p) for p in problems})}
    remove_unfinished(path.parent, path.name)
    for problem in problems:
        remove_unfinished(folder.problem(problem.name))
    saved = _resumed(path, answer, owner)
    controls, anchor, notes, origin = answer.start(problems, saved.origin if saved else None)
    state = saved or loop.begin(controls, origin)
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
                checkpoint.save(path, state, owner)
                raise
            if state.step % every == 0 or state.finished:
                checkpoint.save(path, state, owner)
        tell(state, problems, answer.descent.steps, bar, logger)
    bar.phase("measuring")
    answers = answer.answers(problems, controls, anchor, state, [[*told, *own] for own in notes])
    state.seconds = before + time.monotonic() - clock
    with ThreadPoolExecutor(WRITERS, "picture") as writers:
        for i, problem in enumerate(problems):
            if folder.done(problem.name):
                continue
            for note in answers.notes[i]:
                bar.say(f"{problem.name}: {note}")
            try:
                write_answer(answers, i, answer.task, answer.classifier, folder, logger, writers)
            except NotFinite as error:
                folder.write_failure(problem.name, Failure.of(error, answer.formats).error)
    remove(path)
    bar.finished(len(problems))


def _resumed(path: Path, answer: Solver, owner: Mapping[str, str]) -> State | None:
    """Where a batch stood when it was left, None where it begins; a damaged checkpoint is set aside."""
    try:
        return checkpoint.load(path, answer.device, owner, answer.descent.steps)
    except FileNotFoundError:
        return None
    except Damaged as error:
        set_aside(path, error)
        return None


def _safety_notes(flagged: int, count: int) -> list[str]:
    """What the reader has to know of pictures that were kept from being seen."""
    return [f"{flagged} of {count} pictures were flagged as unsafe and are blurred"] if flagged else []


def _caption_notes(task: Task, problem: Problem) -> list[str]:
    """What the captioner has to say of the problem's caption."""
    note = None if task.captioner is None else task.captioner.notes.get(problem.picture)
    return [] if note is None else [note]


def tell(state: State, problems: Sequence[Problem], steps: int, bar: Progress, logger: Logger) -> None:
    """Curves to the logger, means to the console."""
    latest = state.history[-1]
    evaluated = len(state.history) - 1
    for i, problem in enumerate(problems):
        logger.log(problem.name, evaluated, curve(latest, i))
    confidence = [c for i in range(len(problems)) if (c := curve(latest, i).get("confidence")) is not None]
    bar.step(
        evaluated, steps, sum(latest["total"]) / len(problems),
        sum(confidence) / len(confidence) if confidence else None,
    )  # fmt: skip
