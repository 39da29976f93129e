"""A batch of problems, from its initialization or checkpoint to its results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
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
    Candidate,
    Controls,
    NonFiniteError,
    Objective,
    Problem,
    PromptToPrompt,
    Reference,
    Scene,
)

WRITER_THREADS = 8  # threads that compress images, which takes most of the time, while other images are measured


@dataclass(frozen=True)
class InitializedBatch:
    """A batch before its first optimization step.

    controls: initial ones; context: the generator's, which nothing else reads; candidates: that of each sample; choice:
    for a resume; warnings: per problem.
    """

    problems: Sequence[Problem]
    controls: Controls
    context: Any
    reference: Reference
    candidates: Sequence[Candidate]
    choice: InitialChoice
    warnings: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Solver:
    """Everything that turns a batch of problems into results.

    safety: None for no filter; device: of the generator; prompt_to_prompt: of the run; dtype_hint: what the message of
    a failure says about number formats, where they are not float32."""

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
    def generator(self) -> Generator[Any]:
        return self.baseline.generator

    @property
    def settings(self) -> OptimizerSettings:
        return self.baseline.optimizer

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise UserError for problems that cannot be initialized."""
        self.baseline.initializer.check(problems)

    def objective(self, problems: Sequence[Problem], reference: Reference) -> Objective:
        """The task's objective, as the baseline adapts it."""
        return self.baseline.adapt_objective(self.task.objective(problems, reference, self.classifier))

    def initialize(self, problems: Sequence[Problem], choice: InitialChoice | None = None) -> InitializedBatch:
        """Initialize the problems and choose among the candidates, unless a resumed run has its choice."""
        initializer = self.baseline.initializer
        start = initializer.initialize(problems, self.prompt_to_prompt, choice.precomputed if choice else None)
        objective = self.objective(problems, start.reference)
        choice = choice or loop.choose_initialization(initializer, start, objective)
        controls, context = self.baseline.prepare(*initializer.select(start, choice.candidate_indices), objective)
        candidates = [start.candidates[j] for j in choice.candidate_indices]
        return InitializedBatch(problems, controls, context, start.reference, candidates, choice, start.warnings)

    def optimize(self, batch: InitializedBatch, state: OptimizationState) -> Iterator[OptimizationState]:
        """The states of the optimization that follow a state."""
        seeds = [p.seed for p in batch.problems]

        def augment(scene: Scene, k: int) -> Scene:
            return self.augment(scene, seeds, k, self.classifier.size) if self.baseline.uses_augmentation else scene

        objective = self.objective(batch.problems, batch.reference)
        return loop.optimize(self.generator, batch.context, batch.controls, objective, augment, self.settings, state)

    @torch.no_grad()
    def losses(self, batch: InitializedBatch, state: OptimizationState) -> list[dict[str, float]]:
        """The terms and their total of each sample's best iterate."""
        context = self.generator.evaluation_context(batch.context)
        if context is batch.context:
            evaluations = [state.history[int(k)] for k in state.best_step]
        else:
            scene = self.generator(state.best_controls, context)[-1]
            loss = evaluate(self.objective(batch.problems, batch.reference), scene)
            values = {name: v.tolist() for name, v in {**loss.terms, "total": loss.total}.items()}
            evaluations = [values] * len(batch.problems)
        return [{name: values[i] for name, values in terms.items()} for i, terms in enumerate(evaluations)]

    def render(self, controls: Controls, context: Any) -> tuple[Float[Tensor, "b n 3 h w"], Sequence[int]]:
        """The images of each problem's result in [0, 1], the most important one first, those that are flagged as unsafe
        blurred; and how many were flagged."""
        images = self.generator.images(controls, context)
        if self.safety is None:
            return images, [0] * len(images)
        filtered, flags = self.safety(images.flatten(0, 1))
        return filtered.view_as(images), flags.view(images.shape[:2]).sum(dim=1).tolist()

    @torch.no_grad()
    def results(
        self, batch: InitializedBatch, state: OptimizationState, batch_warnings: Sequence[str] = ()
    ) -> BatchResults:
        """The images, losses and warnings of the best iterates. batch_warnings: for all problems."""
        problems = batch.problems
        (start_images, _), (best_images, flagged) = (
            self.render(controls, batch.context) for controls in (batch.controls, state.best_controls)
        )
        prompts = self.generator.decode_prompts(state.best_controls, batch.context) or [
            problem.edit.target for problem in problems
        ]
        optimization_warnings = self.find_warnings(problems, batch.reference, start_images[:, 0], state)
        warnings = [
            [
                *_caption_warnings(self.task, problem), *batch_warnings, *batch.warnings[i],
                *optimization_warnings[i],
                *_safety_warnings(flagged[i], best_images.shape[1]),
            ]
            for i, problem in enumerate(problems)
        ]  # fmt: skip
        return BatchResults(
            problems, batch.reference, batch.candidates, state, self.settings.steps, self.generator.saved_controls,
            start_images, best_images, prompts, self.losses(batch, state), warnings,
        )  # fmt: skip


def solve_batch(
    solver: Solver, problems: Sequence[Problem], folder: RunFolder, path: Path, every: int, interrupt: SignalHandler,
    lease: Lease, bar: Progress, logger: Logger, batch_warnings: Sequence[str] = (),
) -> None:  # fmt: skip
    """Solve one batch, from its checkpoint if there is one, and save the results.

    path: of the checkpoint, which is saved every so many steps and when the run is stopped; batch_warnings: for all
    records. Raises LeaseLostError if another process has taken the batch over."""
    clock = time.monotonic()
    bar.start_batch([p.name for p in problems])
    bar.set_phase("preparing")
    identity = {"run": folder.path.name, "list of problems": json.dumps({p.name: problem_digests(p) for p in problems})}
    remove_temporary_files(path.parent, path.name)
    for problem in problems:
        remove_temporary_files(folder.problem_folder(problem.name))
    resumed = _load_checkpoint(path, solver, identity)
    batch = solver.initialize(problems, resumed.initial_choice if resumed else None)
    state = resumed or loop.initial_state(batch.controls, batch.choice)
    seconds_before = state.seconds
    states = solver.optimize(batch, state)
    while not state.finished:
        with interrupt.deferred():
            state = next(states)
            state.seconds = seconds_before + time.monotonic() - clock
            lease.check()
            try:
                interrupt.check()
            except RunStopped:
                checkpoint.save(path, state, identity)
                raise
            if state.step % every == 0 or state.finished:
                checkpoint.save(path, state, identity)
        report_progress(state, problems, solver.settings.steps, bar, logger)
    bar.set_phase("measuring")
    results = solver.results(batch, state, batch_warnings)
    state.seconds = seconds_before + time.monotonic() - clock
    with ThreadPoolExecutor(WRITER_THREADS, "image") as writers:
        for i, problem in enumerate(problems):
            if folder.is_done(problem.name):
                continue
            for warning in results.warnings[i]:
                bar.message(f"{problem.name}: {warning}")
            try:
                save_result(results, i, solver.task, solver.classifier, folder, logger, writers)
            except NonFiniteError as error:
                folder.write_failure(problem.name, Failure.from_error(error, solver.dtype_hint).error)
    remove(path)
    bar.advance(len(problems))


def _load_checkpoint(path: Path, solver: Solver, identity: Mapping[str, str]) -> OptimizationState | None:
    """The state of a batch that was stopped, None for one that was not; a damaged checkpoint is set aside."""
    try:
        return checkpoint.load(path, solver.device, identity, solver.settings.steps)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        quarantine(path, error)
        return None


def _safety_warnings(flagged: int, count: int) -> list[str]:
    """How many of a problem's images are blurred, if any."""
    return [f"{flagged} of {count} images were flagged as unsafe and are blurred"] if flagged else []


def _caption_warnings(task: Task, problem: Problem) -> list[str]:
    """The captioner's note on the problem's caption, if any."""
    note = None if task.captioner is None else task.captioner.notes.get(problem.image_name)
    return [] if note is None else [note]


def report_progress(
    state: OptimizationState, problems: Sequence[Problem], steps: int, bar: Progress, logger: Logger
) -> None:
    """Log the latest values of each problem; show their means on the console."""
    latest = state.history[-1]
    evaluated = len(state.history) - 1
    for i, problem in enumerate(problems):
        logger.log_step(problem.name, evaluated, sample_values(latest, i))
    confidence = [c for i in range(len(problems)) if (c := sample_values(latest, i).get("confidence")) is not None]
    bar.step(
        evaluated, steps, sum(latest["total"]) / len(problems),
        sum(confidence) / len(confidence) if confidence else None,
    )  # fmt: skip
