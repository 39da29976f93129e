"""A run: cut the problems into batches and solve, with whoever else works at it, each that is not done."""

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
        """The generator, where what is done with it needs a diffusion model. Raises UserError if it is none."""
        return require_diffusion(self.generator, "this")

    @property
    def digests(self) -> list[str]:
        """Of the networks, images and files that results follow from."""
        judges = [fingerprint(part) for part in (self.classifier, *self.task.dependencies)]
        safety = [] if self.safety_checker is None else [self.safety_checker.digest]
        return [self.generator.digest, getattr(self.generator.segmenter, "digest", ""), *judges, *safety]

    @property
    def classifiers(self) -> dict[str, Classifier]:
        """The classifiers that results follow from, by the part of the configuration that each is."""
        rivals = [network for network in self.task.dependencies if isinstance(network, ImageClassifier)]
        return dict(zip(("classifier", "rival"), (self.classifier, *rivals), strict=False))


def fingerprint(part: HasDigest) -> str:
    """What results depend on in a part: its digest, and for a classifier its preprocessing and its labels."""
    return repr((getattr(part, "fingerprint", part.digest), getattr(part, "labels", ())))


def make_manifest(parts: Parts, problems: Sequence[Problem], total: int | None) -> Manifest:
    """The manifest: digests of the problems, logits of the classifiers on a fixed image, and the number of problems."""
    answers = {name: probe_logits(judge) for name, judge in parts.classifiers.items()}
    unseen = [
        line
        for judge in parts.classifiers.values()
        if (line := getattr(judge, "untracked_dependencies", None)) is not None
    ]
    return Manifest({problem.name: problem_digests(problem) for problem in problems}, answers, unseen, total)


def make_solver(parts: Parts) -> Solver:
    """The solver that a task's `baseline` asks for, with the rates in the generator's own scale."""
    descent, scale = parts.optimizer, parts.generator.lr_scale
    rates, ends = (
        None if values is None else {name: value * scale.get(name, 1.0) for name, value in values.items()}
        for values in (descent.lr, descent.min_lr)
    )
    baseline = parts.baseline[parts.task.baseline]
    chosen = baseline(parts.generator, parts.parametrization, replace(descent, lr=rates or {}, min_lr=ends))
    doubts = ResultWarnings(parts.generator, parts.classifier)
    formats = dtype_hint(parts.generator.dtype, parts.optimizer.autocast)
    return Solver(
        chosen,
        parts.classifier,
        parts.task,
        parts.augment,
        doubts,
        parts.safety_checker,
        parts.generator.device,
        parts.generator.prompt_to_prompt.with_overrides(parts.task.prompt_to_prompt),
        formats,
    )


def dtype_hint(generator: torch.dtype, autocast: str | None) -> str:
    """What the failure of a number says of formats below float32, which may be why it is not finite."""
    found = []
    if generator != torch.float32:
        largest = f"largest number {torch.finfo(generator).max:.3g}"
        found.append(f"; the generator computes in {str(generator).removeprefix('torch.')} ({largest}): "
                     "generator.dtype=float32 has the widest range and most digits")  # fmt: skip
    if autocast is not None:
        found.append(f"; classifiers are shown crops in {autocast}: optimizer.autocast=null takes float32")
    return "".join(found)


def make_problems(parts: Parts, config: Mapping[str, Any], answer: Solver) -> tuple[list[Problem], int | None]:
    """The problems that a configuration asks for, and how many there are without its `limit`, None if nobody knows.

    Raises UserError for one that cannot be solved and for two of the same name.
    """
    world = TaskInputs(parts.data, parts.classifier, parts.generator, config["seed"], config["limit"])
    problems, total = parts.task.problems(world)
    answer.check([problem for problem in problems if problem.error is None])
    if not problems:
        raise UserError(f"{config['name']}: no problem is left, of a data set of {len(parts.data)} images")
    names = [p.name for p in problems]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{config['name']}: {twice[0]} is asked {names.count(twice[0])} times; name it once")
    return problems, total


def plan_batch(parts: Parts, answer: Solver, batch: int | None, problems: int) -> MemoryPlan:
    """Choose the batch, where None is given, and the recomputation, where it is left to memory; the latter is set."""
    judges = [parts.classifier, *(n for n in parts.task.dependencies if isinstance(n, ImageClassifier))]
    chosen = plan_memory(
        parts.generator,
        judges,
        parts.augment,
        answer.prompt_to_prompt,
        answer.generator.images_in_graph,
        batch,
        problems,
    )
    if isinstance(parts.generator, LatentDiffusion):
        parts.generator.set_gradient_checkpointing(chosen.gradient_checkpointing)
    return chosen


@dataclass(frozen=True)
class PreparedRun:
    """What there is to do. manifest: all problems, in their order; batches: of problems, by name; key: of the run."""

    solver: Solver
    manifest: Manifest
    batches: Mapping[str, Sequence[Problem]]
    folder: RunFolder
    key: str

    @property
    def names(self) -> list[str]:
        return list(self.manifest.problems)

    def done(self, batch: Sequence[Problem]) -> bool:
        return all(self.folder.is_done(p.name) for p in batch)


def prepare(parts: Parts, config: Mapping[str, Any]) -> PreparedRun:
    """The problems of a configuration in batches, and their run folder; also prints them on the console.

    Raises UserError for what can be seen to fail before anything is computed.
    """
    answer = make_solver(parts)
    problems, total = make_problems(parts, config, answer)
    key = run_key(config, parts.digests)
    folder, manifest = RunFolder(Path(config["outputs"]) / config["name"] / key), make_manifest(parts, problems, total)
    folder.check_manifest(manifest)
    size, chosen = _sized(parts, answer, config["batch"], folder, len(problems))
    cut = [(i, problems[i : i + size]) for i in range(0, len(problems), size)]
    of = "" if total is None else f" of {total}"
    print(f"{config['name']}: {len(problems)}{of} problems -> {folder.path}", flush=True)
    if chosen is not None:
        print(f"batch={config['batch']}: {chosen}", flush=True)
    for line in manifest.untracked:
        print(line, flush=True)
    return PreparedRun(answer, manifest, {batch_name(i, len(b)): b for i, b in cut}, folder, key)


def check_output_folders(config: Mapping[str, Any]) -> None:
    """Raises UserError, before anything is loaded, where run folders or the cache cannot be written; a run that is
    finished there can still be shown."""
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
                raise UserError(f"{key}={value}: {error}; give a folder that can be written") from error


def run(
    parts: Parts, config: Mapping[str, Any], interrupt: SignalHandler | None = None, began: float | None = None
) -> int:  # fmt: skip
    """Do what `config` (resolved, plain) asks for and leave it in the run folder; returns the exit code. interrupt:
    what listens to signals already, None where nothing does; began: when the parts began to be loaded, in seconds of
    `time.time`, None for now.

    Any number of processes, on any machines that see the folder, may do so at once: they share the batches.
    """
    began = time.time() if began is None else began
    if interrupt is not None:
        return _run(parts, config, interrupt, began)
    interrupt = SignalHandler()
    with interrupt.installed():
        code = _run(parts, config, interrupt, began)
    interrupt.forward()
    return code


def _run(parts: Parts, config: Mapping[str, Any], interrupt: SignalHandler, began: float) -> int:
    with preparing():
        work = prepare(parts, config)
    interrupt.check()
    folder, names, batches = work.folder, work.names, work.batches
    try:
        check_writable(folder.path)
    except UnwritableError as error:
        return _shown(work, error)
    process, logger = Process.current(), SafeLogger(parts.logger)
    claims = Leases(folder.path / LEASE_FOLDER, config["lease"]["duration"], process)

    def solve(name: str, claim: Lease) -> None:
        first, asked = batch_span(name).start, retry.drop_failed(batches[name])

        def attempt(start: int, stop: int, told: Sequence[str]) -> None:
            part, path = asked[start:stop], folder.checkpoint_path(batch_name(first + start, stop - start))
            every = config["checkpoint"]["every"]
            solve_batch(work.solver, part, folder, path, every, interrupt, claim, bar, logger, told)

        retry(asked, attempt)
        folder.remove_checkpoints(name)
        page()

    def refresh() -> None:
        folder.collect(names, "running", "", parts.task.summarize)
        write_page(folder.path)

    state, reason, code = "running", "", DONE
    note = partial(folder.write_attempt, process, began, preparation_seconds=time.time() - began)
    try:
        folder.repair(names)
        folder.clear_failures(names, claims.is_active)
        folder.write_config(config)
        folder.write_manifest(work.manifest)
        note("running", "")
        folder.collect(names, "running", "", parts.task.summarize)
        logger.start(folder.path, dict(config), work.key, config["options"]["task"])
        solved = sum(len(batch) for batch in batches.values() if work.done(batch))
        with claims.announce(), progress(len(names), solved) as bar, BackgroundRefresh(refresh) as page:
            retry = BatchRetry(folder, bar, parts.generator.device, work.solver.dtype_hint, process.name)
            solve_shared(batches, work.done, claims, config["lease"]["wait_for_others"], solve, bar)
            page.wait()
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
            status = _collect(folder, names, process, note, state, reason, parts.task.summarize)
    if code == DONE and status["pending"]:
        code, reason = PENDING, f"{status['pending']} problems are left to other processes"
    return _say(work, status, code, reason)


def _shown(work: PreparedRun, refusal: UnwritableError) -> int:
    """The exit code of a finished run whose folder cannot be written, such as another user's. Raises UserError if
    something is left to do."""
    damaged = {path.parent.name for path in work.folder.find_damage(work.names)}
    left = [name for name in work.names if name in damaged or not work.folder.is_done(name)]
    if left:
        raise UserError(f"{refusal}; {len(left)} of {len(work.names)} problems are not done there")
    failures = work.folder.failures(work.names)
    return _say(work, {"failures": failures, "failed": len(failures)}, DONE, "")


def _sized(
    parts: Parts, answer: Solver, batch: int | Literal["auto"], folder: RunFolder, problems: int
) -> tuple[int, MemoryPlan | None]:
    """How many problems a batch has, and what was chosen by memory, None where nothing is left to it."""
    size = None if batch == "auto" else batch
    if size is not None and parts.generator.gradient_checkpointing != "auto":
        return size, None
    known = size or folder.stored_batch_size()
    chosen = plan_batch(parts, answer, known, problems)
    return known or folder.store_batch_size(chosen.batch_size), chosen


def _collect(
    folder: RunFolder, names: Sequence[str], process: Process, note: Callable[[str, str], None], state: str,
    reason: str, summarise: Summarize,
) -> dict[str, Any]:  # fmt: skip
    """The final status; where nothing can be written any more, what could be written before stays. Of a run that failed
    before its first problem nothing stays."""
    if state == "failed" and folder.is_unused(process):
        folder.remove()
        return {"failures": [], "failed": 0, "pending": len(names)}
    try:
        status = folder.collect(names, state, reason, summarise)
        note(status["state"], reason)
        status["headline"] = write_page(folder.path)
    except UnwritableError:
        return {"failures": [], "failed": 0, "pending": len(names)}
    return status


def _say(work: PreparedRun, status: Mapping[str, Any], code: int, reason: str) -> int:
    """Print the last lines of a run; returns its exit code, which depends on the problems of this command."""
    failures = [failure for failure in status["failures"] if failure["name"] in work.manifest.problems]
    for failure in failures:
        print(f"failed: {failure['name']}: {failure['error']}", file=sys.stderr)
    if code == DONE:
        if headline := status.get("headline"):
            print(headline.replace("\u00a0", " "))
        print(f"page: {(work.folder.path / 'index.html').resolve()}", flush=True)
        return FAILED if failures else DONE
    print(reason, file=sys.stderr, flush=True)
    return code
