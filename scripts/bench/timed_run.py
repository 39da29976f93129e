"""A prepared run, and what all timings of its explanations need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.runner.batch import InitializedBatch, Solver
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.optimization import loop
from classifier_lens.runner.optimization.loop import OptimizationState
from classifier_lens.runner.protocols import TaskInputs
from classifier_lens.runner.run import Parts as RunParts
from classifier_lens.runner.run import make_solver, plan_batch
from classifier_lens.runner.types import Initialization, Scene
from classifier_lens.scripts.bench.timing import PartSeconds, seconds

TIMED_STEPS = 3  # timed optimization steps; their median stands for all steps


@dataclass(frozen=True)
class TimedRun:
    """A run that is ready for timing. num_steps: K, of which few are run; num_classifiers: number of classifiers that
    see each image."""

    parts: RunParts
    solver: Solver
    problems: Sequence[Any]
    num_steps: int
    num_classifiers: int

    @property
    def batch_size(self) -> int:
        return len(self.problems)

    @property
    def images(self) -> Tensor | None:
        images = [p.image for p in self.problems if p.image is not None]
        return torch.stack(images).to(self.parts.diffusion.device) if images else None

    def augment(self, scene: Scene, k: int) -> Scene:
        return self.solver.augment(scene, [p.seed for p in self.problems], k, self.parts.classifier.size)


def prepare_run(overrides: Sequence[str], batch: int) -> TimedRun:
    """A run of the first `batch` problems of `python run.py <overrides>`."""
    config = compose_config([*overrides, f"batch={batch}", f"limit={batch}", "logger=none", f"outputs={_FOLDER.name}"])
    parts = build(config)
    solver = make_solver(parts)
    problems, _ = parts.task.problems(TaskInputs(parts.data, parts.classifier, parts.diffusion, config["seed"], batch))
    if parts.diffusion.gradient_checkpointing == "auto":
        plan_batch(parts, solver, batch, batch)
    return TimedRun(parts, solver, problems, parts.optimizer.steps, 1 + len(parts.task.dependencies))


_FOLDER = TemporaryDirectory(prefix="bench-")  # of caches; removed when the process ends


class Captured:
    """The result of a timed call."""

    value: Any = None

    def keep(self, value: object) -> None:
        self.value = value


def time_steps(run: TimedRun, batch: InitializedBatch) -> tuple[float, OptimizationState]:
    """Seconds per image and optimization step, and the state after the last timed one."""
    states = run.solver.optimize(batch, loop.initial_state(batch.controls, batch.choice))
    state, times = Captured(), []
    for _ in range(min(TIMED_STEPS, run.num_steps)):
        times.append(seconds(lambda: state.keep(next(states))) / run.batch_size)
    return sorted(times)[len(times) // 2], state.value


def with_total(parts: PartSeconds, steps: int) -> PartSeconds:
    """The parts, and as `all` the sum for an explanation of `steps` steps."""
    fixed_seconds = sum(value for name, value in parts.items() if name != "step")
    return {**parts, "all": fixed_seconds + steps * parts["step"]}


def first_problem_crops(run: TimedRun) -> Callable[[Scene, int], Scene]:
    """The augmentation of the first problem."""
    return replace(run, problems=run.problems[:1]).augment


def candidate_contexts(run: TimedRun, initialization: Initialization[DiffusionContext]) -> list[DiffusionContext]:
    """The context of each candidate."""
    count, positions = len(initialization.warnings), range(len(initialization.candidates))
    return [run.solver.baseline.initializer.select(initialization, [j] * count)[1] for j in positions]
