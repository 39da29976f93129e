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

from classifier_lens.runner.baselines.methods import Baseline
from classifier_lens.runner.cluster.leases import Lease
from classifier_lens.runner.cluster.signals import RunStopped, SignalHandler
from classifier_lens.runner.files.atomic import DamagedFileError, quarantine, remove, remove_temporary_files
from classifier_lens.runner.logging.logger import Logger
from classifier_lens.runner.logging.progress_bar import Progress
from classifier_lens.runner.optimization import checkpoint, loop
from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.optimization.loop import InitialChoice, OptimizationState, OptimizerSettings
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.protocols import Classifier, Generator, SafetyFilter, Task
from classifier_lens.runner.results.manifest import problem_digests
from classifier_lens.runner.results.problem_results import BatchResults, sample_values, save_result
from classifier_lens.runner.results.result_warnings import ResultWarnings
from classifier_lens.runner.results.run_folder import RunFolder
from classifier_lens.runner.retry import Failure
from classifier_lens.runner.types import (
    Controls,
    EditContext,
    NonFiniteError,
    Objective,
    Problem,
    PromptToPrompt,
    Scene,
)

WRITER_THREADS = 8  # threads that compress pictures, most of a picture's time, while others are measured


@dataclass(frozen=True)
class Solver:
    """What turns a batch of problems into answers. device: where the generator computes; dtype_hint: what a failure
    adds of the number formats, where they are not float32."""

    baseline: Baseline
    classifier: Classifier
    task: Task
    augment: RandomCrops
    find_warnings: ResultWarnings
    safety: SafetyFilter | None
    device: torch.device
    prompt_to_prompt: PromptToPrompt
    dtype_hint: str = ""

    @property
    def generator(self) -> Generator:
        return self.baseline.generator

    @property
    def descent(self) -> OptimizerSettings:
        return self.baseline.optimizer

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise UserError for what can be seen to fail before anything is computed."""
        self.baseline.initializer.check(problems)

    def objective(self, problems: Sequence[Problem], anchor: EditContext) -> Objective:
        """The task's, as the contestant takes it."""
        return self.baseline.adapt_objective(self.task.objective(problems, anchor, self.classifier))

    def initialize(
        self, problems: Sequence[Problem], origin: InitialChoice | None = None
    ) -> tuple[Controls, EditContext, Sequence[Sequence[str]], InitialChoice]:
        """Invert or draw, find the region, choose the best of the candidates; or, from their origin, begin again as
        before. Notes per problem."""
        initializer = self.baseline.initializer
        start = initializer.initialize(problems, self.prompt_to_prompt, origin.precomputed if origin else None)
        objective = self.objective(problems, start.context)
        origin = origin or loop.choose_initialization(initializer, start, objective)
        controls, anchor = initializer.select(start, origin.candidate_indices)
        return self.baseline.prepare_controls(controls, anchor, objective), anchor, start.warnings, origin

    def optimize(
        self, problems: Sequence[Problem], anchor: EditContext, state: OptimizationState
    ) -> Iterator[OptimizationState]:
        """The descent from a state on."""
        seeds = [p.seed for p in problems]

        def augment(scene: Scene, k: int) -> Scene:
            return self.augment(scene, seeds, k, self.classifier.size) if self.baseline.uses_augmentation else scene

        return loop.optimize(self.generator, anchor, self.objective(problems, anchor), augment, self.descent, state)

    @torch.no_grad()
    def losses(
        self, problems: Sequence[Problem], anchor: EditContext, state: OptimizationState
    ) -> list[dict[str, float]]:
        """The terms and their total of each sample's best step."""
        final = self.generator.evaluation_context(anchor)
        if final is anchor:
            steps = [state.history[int(k)] for k in state.best_step]
        else:
            loss = evaluate(self.objective(problems, anchor), self.generator(state.best_controls, final)[-1])
            steps = [{name: v.tolist() for name, v in {**loss.terms, "total": loss.total}.items()}] * len(problems)
        return [{name: values[i] for name, values in step.items()} for i, step in enumerate(steps)]

    def render(self, controls: Controls, anchor: EditContext) -> tuple[Tensor, Sequence[int]]:
        """The pictures that are reported, (b, n, 3, h, w) in [0, 1], of which the first is the one that counts; and how
        many of each problem's were flagged as unsafe, and are blurred."""
        pictures = self.generator.images(controls, anchor)
        if self.safety is None:
            return pictures, [0] * len(pictures)
        screened, flags = self.safety(pictures.flatten(0, 1))
        return screened.view_as(pictures), flags.view(pictures.shape[:2]).sum(dim=1).tolist()

    @torch.no_grad()
    def results(
        self, problems: Sequence[Problem], controls: Controls, anchor: EditContext, state: OptimizationState,
        notes: Sequence[Sequence[str]],
    ) -> BatchResults:  # fmt: skip
        """What was found from a batch's first controls on; notes: of its beginning."""
        (starts, _), (bests, flagged) = self.render(controls, anchor), self.render(state.best_controls, anchor)
        prompts = self.generator.decode_prompts(state.best_controls, anchor) or [
            problem.edit.target for problem in problems
        ]
        doubts = self.find_warnings(problems, anchor, starts[:, 0], state)
        told = [
            [*_caption_notes(self.task, problem), *notes[i], *doubts[i], *_safety_notes(flagged[i], bests.shape[1])]
            for i, problem in enumerate(problems)
        ]
        losses, lasting = self.losses(problems, anchor, state), self.generator.saved_controls
        return BatchResults(problems, anchor, state, self.descent.steps, lasting, starts, bests, prompts, losses, told)


def solve_batch(
    answer: Solver, problems: Sequence[Problem], folder: RunFolder, path: Path, every: int, interrupt: SignalHandler,
    claim: Lease, bar: Progress, logger: Logger, told: Sequence[str] = (),
) -> None:  # fmt: skip
    """One batch from where it stands to its results; its state is saved every so many steps and when stopped. told:
    notes for all its records. Raises LeaseLostError if another process has taken it over."""
    clock = time.monotonic()
    bar.start_batch([p.name for p in problems])
    bar.set_phase("preparing")
    owner = {"run": folder.path.name, "list of problems": json.dumps({p.name: problem_digests(p) for p in problems})}
    remove_temporary_files(path.parent, path.name)
    for problem in problems:
        remove_temporary_files(folder.problem_folder(problem.name))
    saved = _resumed(path, answer, owner)
    controls, anchor, notes, origin = answer.initialize(problems, saved.initial_choice if saved else None)
    state = saved or loop.initial_state(controls, origin)
    before = state.seconds
    states = answer.optimize(problems, anchor, state)
    while not state.finished:
        with interrupt.deferred():
            state = next(states)
            state.seconds = before + time.monotonic() - clock
            claim.check()
            try:
                interrupt.check()
            except RunStopped:
                checkpoint.save(path, state, owner)
                raise
            if state.step % every == 0 or state.finished:
                checkpoint.save(path, state, owner)
        report_progress(state, problems, answer.descent.steps, bar, logger)
    bar.set_phase("measuring")
    answers = answer.results(problems, controls, anchor, state, [[*told, *own] for own in notes])
    state.seconds = before + time.monotonic() - clock
    with ThreadPoolExecutor(WRITER_THREADS, "picture") as writers:
        for i, problem in enumerate(problems):
            if folder.is_done(problem.name):
                continue
            for note in answers.notes[i]:
                bar.message(f"{problem.name}: {note}")
            try:
                save_result(answers, i, answer.task, answer.classifier, folder, logger, writers)
            except NonFiniteError as error:
                folder.write_failure(problem.name, Failure.from_error(error, answer.dtype_hint).error)
    remove(path)
    bar.advance(len(problems))


def _resumed(path: Path, answer: Solver, owner: Mapping[str, str]) -> OptimizationState | None:
    """Where a batch stood when it was left, None where it begins; a damaged checkpoint is set aside."""
    try:
        return checkpoint.load(path, answer.device, owner, answer.descent.steps)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        quarantine(path, error)
        return None


def _safety_notes(flagged: int, count: int) -> list[str]:
    """What the reader has to know of pictures that were kept from being seen."""
    return [f"{flagged} of {count} pictures were flagged as unsafe and are blurred"] if flagged else []


def _caption_notes(task: Task, problem: Problem) -> list[str]:
    """What the captioner has to say of the problem's caption."""
    note = None if task.captioner is None else task.captioner.notes.get(problem.image_name)
    return [] if note is None else [note]


def report_progress(
    state: OptimizationState, problems: Sequence[Problem], steps: int, bar: Progress, logger: Logger
) -> None:
    """Curves to the logger, means to the console."""
    latest = state.history[-1]
    evaluated = len(state.history) - 1
    for i, problem in enumerate(problems):
        logger.log_step(problem.name, evaluated, sample_values(latest, i))
    confidence = [c for i in range(len(problems)) if (c := sample_values(latest, i).get("confidence")) is not None]
    bar.step(
        evaluated, steps, sum(latest["total"]) / len(problems),
        sum(confidence) / len(confidence) if confidence else None,
    )  # fmt: skip
