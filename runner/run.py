"""A run: the problems are cut into batches, which all processes of the run share, and solved."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.baselines.methods import BaselineFactory, ImageModel, Parametrization, require_diffusion
from classifier_lens.runner.batch import Solver, solve_batch
from classifier_lens.runner.cluster.batch_sharing import solve_shared
from classifier_lens.runner.cluster.leases import Lease, Leases, Process
from classifier_lens.runner.cluster.signals import RunStopped, SignalHandler
from classifier_lens.runner.files.atomic import UnwritableError, check_writable
from classifier_lens.runner.logging.logger import Logger, SafeLogger
from classifier_lens.runner.logging.progress_bar import preparing, progress
from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.optimization.loop import OptimizerSettings
from classifier_lens.runner.optimization.memory_planning import MemoryPlan, plan_memory
from classifier_lens.runner.protocols import Classifier, Dataset, HasDigest, SafetyFilter, Task, TaskInputs
from classifier_lens.runner.report.background_refresh import BackgroundRefresh
from classifier_lens.runner.report.page import write_page
from classifier_lens.runner.results.batch_names import batch_name, batch_span
from classifier_lens.runner.results.manifest import Manifest, probe_logits, problem_digests
from classifier_lens.runner.results.result_warnings import ResultWarnings
from classifier_lens.runner.results.run_folder import LEASE_FOLDER, RunFolder, Summarize, run_key
from classifier_lens.runner.retry import BatchRetry, DeviceLostError
from classifier_lens.runner.types import Problem, UserError, first_line

PENDING, BAD_INPUT, FAILED, DONE = 75, 2, 1, 0  # exit codes, beside those of `runner.cluster.signals`


@dataclass(frozen=True)
class Parts:
    """The objects of a run, each built once."""

    generator: ImageModel
    classifier: Classifier
    data: Dataset
    task: Task
    parametrization: Parametrization
    baseline: Mapping[str, BaselineFactory]
    optimizer: OptimizerSettings
    augment: RandomCrops
    logger: Logger
    safety_checker: SafetyFilter | None = None

    @property
    def diffusion(self) -> LatentDiffusion:
        """The generator, if it is a diffusion model. Raises UserError otherwise."""
        return require_diffusion(self.generator, "this")

    @property
    def digests(self) -> list[str]:
        """Digests of the networks, images and files on which results depend."""
        dependencies = [fingerprint(part) for part in (self.classifier, *self.task.dependencies)]
        safety = [] if self.safety_checker is None else [self.safety_checker.digest]
        return [self.generator.digest, getattr(self.generator.segmenter, "digest", ""), *dependencies, *safety]

    @property
    def classifiers(self) -> dict[str, Classifier]:
        """The classifiers on which results depend, by their keys in the configuration."""
        others = [network for network in self.task.dependencies if isinstance(network, ImageClassifier)]
        return dict(zip(("classifier", "rival"), (self.classifier, *others), strict=False))


def fingerprint(part: HasDigest) -> str:
    """Everything in a part on which results depend: its digest and, of a classifier, preprocessing and class names."""
    return repr((getattr(part, "fingerprint", part.digest), getattr(part, "labels", ())))


def make_manifest(parts: Parts, problems: Sequence[Problem], total: int | None) -> Manifest:
    """The manifest of the problems and the classifiers of a run."""
    logits = {name: probe_logits(classifier) for name, classifier in parts.classifiers.items()}
    untracked = [
        line
        for classifier in parts.classifiers.values()
        if (line := getattr(classifier, "untracked_dependencies", None)) is not None
    ]
    return Manifest({problem.name: problem_digests(problem) for problem in problems}, logits, untracked, total)


def make_solver(parts: Parts) -> Solver:
    """The solver of the task's `baseline`, with learning rates in the generator's scale."""
    settings, scale = parts.optimizer, parts.generator.lr_scale
    lr, min_lr = (
        None if values is None else {name: value * scale.get(name, 1.0) for name, value in values.items()}
        for values in (settings.lr, settings.min_lr)
    )
    make_baseline = parts.baseline[parts.task.baseline]
    return Solver(
        make_baseline(parts.generator, parts.parametrization, replace(settings, lr=lr or {}, min_lr=min_lr)),
        parts.classifier,
        parts.task,
        parts.augment,
        ResultWarnings(parts.generator, parts.classifier),
        parts.safety_checker,
        parts.generator.device,
        parts.generator.prompt_to_prompt.with_overrides(parts.task.prompt_to_prompt),
        dtype_hint(parts.generator.dtype, settings.autocast),
    )


def dtype_hint(generator: torch.dtype, autocast: str | None) -> str:
    """A hint for values that are not finite: the number formats below float32, which may be the cause."""
    hints = []
    if generator != torch.float32:
        largest = f"largest number {torch.finfo(generator).max:.3g}"
        hints.append(f"; the generator computes in {str(generator).removeprefix('torch.')} ({largest}): "
                     "generator.dtype=float32 has the widest range and most digits")  # fmt: skip
    if autocast is not None:
        hints.append(f"; classifiers compute in {autocast}: optimizer.autocast=null uses float32")
    return "".join(hints)


def make_problems(parts: Parts, config: Mapping[str, Any], solver: Solver) -> tuple[list[Problem], int | None]:
    """The problems of a configuration, and their number without its `limit`, None if it is not known.

    Raises UserError for one that cannot be initialized and for two of the same name.
    """
    inputs = TaskInputs(parts.data, parts.classifier, parts.generator, config["seed"], config["limit"])
    problems, total = parts.task.problems(inputs)
    solver.check([problem for problem in problems if problem.error is None])
    if not problems:
        raise UserError(f"{config['name']}: the data set of {len(parts.data)} images has no problem for this task")
    names = [p.name for p in problems]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        name = repeated[0]
        raise UserError(
            f"{config['name']}: {names.count(name)} problems have the name {name}; select each of them once"
        )
    return problems, total


def plan_batch(parts: Parts, solver: Solver, batch: int | None, problems: int) -> MemoryPlan:
    """Choose the batch size, if it is None, and set gradient checkpointing, if it is `auto`, by the free memory."""
    classifiers = [parts.classifier, *(n for n in parts.task.dependencies if isinstance(n, ImageClassifier))]
    plan = plan_memory(
        parts.generator,
        classifiers,
        parts.augment,
        solver.prompt_to_prompt,
        solver.generator.images_in_graph,
        batch,
        problems,
    )
    if isinstance(parts.generator, LatentDiffusion):
        parts.generator.set_gradient_checkpointing(plan.gradient_checkpointing)
    return plan


@dataclass(frozen=True)
class PreparedRun:
    """A run before its first batch. manifest: of all problems, in order; batches: by name."""

    solver: Solver
    manifest: Manifest
    batches: Mapping[str, Sequence[Problem]]
    folder: RunFolder

    @property
    def key(self) -> str:
        """The run's hash."""
        return self.folder.path.name

    @property
    def names(self) -> list[str]:
        return list(self.manifest.problems)

    def done(self, batch: Sequence[Problem]) -> bool:
        return all(self.folder.is_done(p.name) for p in batch)


def run_folder(parts: Parts, config: Mapping[str, Any]) -> RunFolder:
    """The folder of a run, named by its task, its parts and its hash."""
    return RunFolder(Path(config["outputs"]) / config["name"] / run_key(config, parts.digests))


def prepare(parts: Parts, config: Mapping[str, Any]) -> PreparedRun:
    """The problems of a configuration, cut into batches, and the run folder; prints both.

    Raises UserError for whatever is known to fail before anything is computed.
    """
    solver = make_solver(parts)
    problems, total = make_problems(parts, config, solver)
    folder, manifest = run_folder(parts, config), make_manifest(parts, problems, total)
    folder.check_manifest(manifest)
    size, plan = _choose_batch_size(parts, solver, config["batch"], folder, len(problems))
    batches = [(i, problems[i : i + size]) for i in range(0, len(problems), size)]
    of = "" if total is None else f" of {total}"
    print(f"{config['name']}: {len(problems)}{of} problems -> {folder.path}", flush=True)
    if plan is not None:
        print(f"batch={config['batch']}: {plan}", flush=True)
    for line in manifest.untracked:
        print(line, flush=True)
    return PreparedRun(solver, manifest, {batch_name(i, len(b)): b for i, b in batches}, folder)


def check_output_folders(config: Mapping[str, Any]) -> None:
    """Raises UserError, before anything is loaded, if run folders or the cache cannot be written; a finished run in
    such a folder can still be shown."""
    folder = Path(config["outputs"]) / config["name"]
    for key, value, place in (
        ("outputs", config["outputs"], folder),
        ("cache.folder", config["cache"]["folder"], config["cache"]["folder"]),
    ):
        try:
            if place is not None:
                check_writable(Path(place))
        except UnwritableError as error:
            runs = folder.glob("*") if os.path.isdir(folder) else ()
            if not any(RunFolder(path).is_finished(config) for path in runs):
                raise UserError(f"{key}={value}: {error}; choose a writable folder") from error


def run(
    parts: Parts, config: Mapping[str, Any], interrupt: SignalHandler | None = None, started_at: float | None = None
) -> int:  # fmt: skip
    """Solve the problems of `config` (resolved, plain) and write the results to the run folder; returns the exit code.
    interrupt: an installed signal handler, None to install one; started_at: when loading the parts started, in seconds
    of `time.time`, None for now.

    Any number of processes on machines that share the folder may do so at once: they share the batches.
    """
    started_at = time.time() if started_at is None else started_at
    if interrupt is not None:
        return _run(parts, config, interrupt, started_at)
    interrupt = SignalHandler()
    with interrupt.installed():
        code = _run(parts, config, interrupt, started_at)
    interrupt.forward()
    return code


def _run(parts: Parts, config: Mapping[str, Any], interrupt: SignalHandler, started_at: float) -> int:
    with preparing():
        prepared = prepare(parts, config)
    interrupt.check()
    folder, names, batches = prepared.folder, prepared.names, prepared.batches
    try:
        check_writable(folder.path)
    except UnwritableError as error:
        return _show_finished(prepared, error)
    process, logger = Process.current(), SafeLogger(parts.logger)
    leases = Leases(folder.path / LEASE_FOLDER, config["lease"]["duration"], process)

    def solve(name: str, lease: Lease) -> None:
        first, batch = batch_span(name).start, retry.drop_failed(batches[name])

        def attempt(start: int, stop: int, warnings: Sequence[str]) -> None:
            part, path = batch[start:stop], folder.checkpoint_path(batch_name(first + start, stop - start))
            every = config["checkpoint"]["every"]
            solve_batch(prepared.solver, part, folder, path, every, interrupt, lease, bar, logger, warnings)

        retry(batch, attempt)
        folder.remove_checkpoints(name)
        refresh_page()

    def refresh() -> None:
        folder.collect(names, "running", "", parts.task.summarize)
        write_page(folder.path)

    state, reason, code = "running", "", DONE
    write_attempt = partial(folder.write_attempt, process, started_at, preparation_seconds=time.time() - started_at)
    try:
        folder.repair(names)
        folder.clear_failures(names, leases.is_active)
        folder.write_config(config)
        folder.write_manifest(prepared.manifest)
        write_attempt("running", "")
        folder.collect(names, "running", "", parts.task.summarize)
        logger.start(folder.path, dict(config), prepared.key, config["options"]["task"])
        solved = sum(len(batch) for batch in batches.values() if prepared.done(batch))
        with leases.announce(), progress(len(names), solved) as bar, BackgroundRefresh(refresh) as refresh_page:
            retry = BatchRetry(folder, bar, parts.generator.device, prepared.solver.dtype_hint, process.name)
            solve_shared(batches, prepared.done, leases, config["lease"]["wait_for_others"], solve, bar)
            refresh_page.wait()
        interrupt.check()
        state = "done"
    except RunStopped as stop:
        state, reason, code = "stopped", stop.message, stop.exit_code
    except UnwritableError as error:
        state, reason, code = "failed", f"{error} (outputs={config['outputs']})", FAILED
    except DeviceLostError as error:
        state, reason, code = "failed", f"{error}; the same command continues", FAILED
    finally:
        with interrupt.deferred():
            if state == "running" and (raised := sys.exception()) is not None:
                state, reason = "failed", f"{type(raised).__name__}: {first_line(raised)}"
            logger.finish()
            status = _collect(folder, names, process, write_attempt, state, reason, parts.task.summarize)
    if code == DONE and status["pending"]:
        code, reason = PENDING, f"{status['pending']} problems are left to other processes"
    return _print_outcome(prepared, status, code, reason)


def _show_finished(prepared: PreparedRun, error: UnwritableError) -> int:
    """The exit code of a finished run whose folder cannot be written, such as another user's. Raises UserError if
    problems are left."""
    folder, names = prepared.folder, prepared.names
    damaged = {path.parent.name for path in folder.find_damage(names)}
    left = [name for name in names if name in damaged or not folder.is_done(name)]
    if left:
        raise UserError(f"{error}; {len(left)} of {len(names)} problems are not done there")
    failures = folder.failures(names)
    return _print_outcome(prepared, {"failures": failures, "failed": len(failures)}, DONE, "")


def _choose_batch_size(
    parts: Parts, solver: Solver, batch: int | Literal["auto"], folder: RunFolder, problems: int
) -> tuple[int, MemoryPlan | None]:
    """The batch size, and the memory plan, None if the configuration leaves nothing to it."""
    size = None if batch == "auto" else batch
    if size is not None and parts.generator.gradient_checkpointing != "auto":
        return size, None
    fixed = size or folder.stored_batch_size()
    plan = plan_batch(parts, solver, fixed, problems)
    return fixed or folder.store_batch_size(plan.batch_size), plan


def _collect(
    folder: RunFolder, names: Sequence[str], process: Process, write_attempt: Callable[[str, str], None], state: str,
    reason: str, summarize: Summarize,
) -> dict[str, Any]:  # fmt: skip
    """The final status, also written to the run folder if that is possible. The folder of a run that failed before its
    first problem is removed."""
    if state == "failed" and folder.is_unused(process):
        folder.remove()
        return {"failures": [], "failed": 0, "pending": len(names)}
    try:
        status = folder.collect(names, state, reason, summarize)
        write_attempt(status["state"], reason)
        status["headline"] = write_page(folder.path)
    except UnwritableError:
        return {"failures": [], "failed": 0, "pending": len(names)}
    return status


def _print_outcome(prepared: PreparedRun, status: Mapping[str, Any], code: int, reason: str) -> int:
    """Print the last lines of a run; returns its exit code, which only the problems of this command decide."""
    failures = [failure for failure in status["failures"] if failure["name"] in prepared.manifest.problems]
    for failure in failures:
        print(f"failed: {failure['name']}: {failure['error']}", file=sys.stderr)
    if code == DONE:
        if headline := status.get("headline"):
            print(headline.replace("\u00a0", " "))
        print(f"page: {(prepared.folder.path / 'index.html').resolve()}", flush=True)
        return FAILED if failures else DONE
    print(reason, file=sys.stderr, flush=True)
    return code
