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
from classifier_lens.runner.baselines.methods import Baseline, Maker, Parametrise, diffusion
from classifier_lens.runner.batch import Solver, solve_batch
from classifier_lens.runner.cluster.batch_sharing import share
from classifier_lens.runner.cluster.leases import Claim, Claims, Process
from classifier_lens.runner.cluster.signals import Interrupt, Stopped
from classifier_lens.runner.files.atomic import Unwritable, check_writable
from classifier_lens.runner.logging.logger import Logger, Unfailing
from classifier_lens.runner.logging.progress_bar import preparing, progress
from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.optimization.loop import Descent
from classifier_lens.runner.optimization.memory_planning import Plan, plan
from classifier_lens.runner.protocols import Classifier, Dataset, Screen, Task, Weighted, World
from classifier_lens.runner.report.background_refresh import Background
from classifier_lens.runner.report.page import write_page
from classifier_lens.runner.results.batch_names import batch_name, batch_span
from classifier_lens.runner.results.manifest import Manifest, answers_of, digests_of
from classifier_lens.runner.results.result_warnings import Doubts
from classifier_lens.runner.results.run_folder import RunFolder, Summarise, run_key
from classifier_lens.runner.retry import DeviceLost, Retry
from classifier_lens.runner.types import Problem, UserError, first_line

PENDING, BAD_INPUT, FAILED, DONE = 75, 2, 1, 0  # exit codes, beside those of `runner.cluster.signals`


@dataclass(frozen=True)
class Parts:
    """The objects of a run, each built once."""

    generator: Maker
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
    def diffusion(self) -> LatentDiffusion:
        """The generator, where what is done with it needs a diffusion model. Raises UserError if it is none."""
        return diffusion(self.generator, "this")

    @property
    def digests(self) -> list[str]:
        """Of the networks, images and files that results follow from."""
        judges = [identity_of(part) for part in (self.classifier, *self.task.networks)]
        safety = [] if self.safety is None else [self.safety.digest]
        return [self.generator.digest, getattr(self.generator.segmenter, "digest", ""), *judges, *safety]

    @property
    def judges(self) -> dict[str, Classifier]:
        """The classifiers that results follow from, by the part of the configuration that each is."""
        rivals = [network for network in self.task.networks if isinstance(network, ImageClassifier)]
        return dict(zip(("classifier", "rival"), (self.classifier, *rivals), strict=False))


def identity_of(part: Weighted) -> str:
    """What answers of a part follow from: its digest, and of a classifier how images are prepared and what its outputs
    are called."""
    return repr((getattr(part, "recipe", part.digest), getattr(part, "labels", ())))


def manifest_of(parts: Parts, problems: Sequence[Problem], total: int | None) -> Manifest:
    """What is asked, of whom, and of how many problems."""
    answers = {name: answers_of(judge) for name, judge in parts.judges.items()}
    unseen = [line for judge in parts.judges.values() if (line := getattr(judge, "unseen", None)) is not None]
    return Manifest({problem.name: digests_of(problem) for problem in problems}, answers, unseen, total)


def solver(parts: Parts) -> Solver:
    """The solver that a task's `baseline` asks for, with the rates in the generator's own scale."""
    descent, scale = parts.optimizer, parts.generator.lr_scale
    rates, ends = (
        None if values is None else {name: value * scale.get(name, 1.0) for name, value in values.items()}
        for values in (descent.lr, descent.min_lr)
    )
    baseline = parts.baseline[parts.task.baseline]
    chosen = baseline(parts.generator, parts.controls, replace(descent, lr=rates or {}, min_lr=ends))
    doubts = Doubts(parts.generator, parts.classifier)
    formats = formats_of(parts.generator.dtype, parts.optimizer.autocast)
    return Solver(
        chosen, parts.classifier, parts.task, parts.augment, doubts, parts.safety, parts.generator.device, formats
    )


def formats_of(generator: torch.dtype, autocast: str | None) -> str:
    """What the failure of a number says of formats below float32, which may be why it is not finite."""
    found = []
    if generator != torch.float32:
        largest = f"largest number {torch.finfo(generator).max:.3g}"
        found.append(f"; the generator computes in {str(generator).removeprefix('torch.')} ({largest}): "
                     "generator.dtype=float32 has the widest range and most digits")  # fmt: skip
    if autocast is not None:
        found.append(f"; classifiers are shown crops in {autocast}: optimizer.autocast=null takes float32")
    return "".join(found)


def problems_of(parts: Parts, config: Mapping[str, Any], answer: Solver) -> tuple[list[Problem], int | None]:
    """The problems that a configuration asks for, and how many there are without its `limit`, None if nobody knows.

    Raises UserError for one that cannot be solved and for two of the same name.
    """
    world = World(parts.data, parts.classifier, parts.generator, config["seed"], config["limit"])
    problems, total = parts.task.problems(world)
    answer.check([problem for problem in problems if problem.fault is None])
    if not problems:
        raise UserError(f"{config['name']}: no problem is left, of a data set of {len(parts.data)} images")
    names = [p.name for p in problems]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{config['name']}: {twice[0]} is asked {names.count(twice[0])} times; name it once")
    return problems, total


def fit(parts: Parts, answer: Solver, batch: int | None, problems: int) -> Plan:
    """Choose the batch, where None is given, and the recomputation, where it is left to memory; the latter is set."""
    judges = [parts.classifier, *(n for n in parts.task.networks if isinstance(n, ImageClassifier))]
    shares = parts.task.schedules
    chosen = plan(parts.generator, judges, parts.augment, shares, answer.generator.graphed, batch, problems)
    if isinstance(parts.generator, LatentDiffusion):
        parts.generator.recompute_as(chosen.recompute)
    return chosen


@dataclass(frozen=True)
class Work:
    """What there is to do. manifest: all problems, in their order; batches: of problems, by name; key: of the run."""

    answer: Solver
    manifest: Manifest
    batches: Mapping[str, Sequence[Problem]]
    folder: RunFolder
    key: str

    @property
    def names(self) -> list[str]:
        return list(self.manifest.problems)

    def done(self, batch: Sequence[Problem]) -> bool:
        return all(self.folder.done(p.name) for p in batch)


def prepare(parts: Parts, config: Mapping[str, Any]) -> Work:
    """The problems that a configuration asks for, cut into batches, and where their answers go; says so on the console.

    Raises UserError for what can be seen to fail before anything is computed.
    """
    answer = solver(parts)
    problems, total = problems_of(parts, config, answer)
    key = run_key(config, parts.digests)
    folder, manifest = RunFolder(Path(config["outputs"]) / config["name"] / key), manifest_of(parts, problems, total)
    folder.check(manifest)
    size, chosen = _sized(parts, answer, config["batch"], folder, len(problems))
    cut = [(i, problems[i : i + size]) for i in range(0, len(problems), size)]
    of = "" if total is None else f" of {total}"
    print(f"{config['name']}: {len(problems)}{of} problems -> {folder.path}", flush=True)
    if chosen is not None:
        print(f"batch={config['batch']}: {chosen}", flush=True)
    for line in manifest.unseen:
        print(line, flush=True)
    return Work(answer, manifest, {batch_name(i, len(b)): b for i, b in cut}, folder, key)


def check_places(config: Mapping[str, Any]) -> None:
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
        except Unwritable as error:
            runs = folder.glob("*") if os.path.isdir(folder) else ()
            if not any(RunFolder(path).finished(config) for path in runs):
                raise UserError(f"{key}={value}: {error}; give a folder that can be written") from error


def run(
    parts: Parts, config: Mapping[str, Any], interrupt: Interrupt | None = None, began: float | None = None
) -> int:  # fmt: skip
    """Do what `config` (resolved, plain) asks for and leave it in the run folder; returns the exit code. interrupt:
    what listens to signals already, None where nothing does; began: when the parts began to be loaded, in seconds of
    `time.time`, None for now.

    Any number of processes, on any machines that see the folder, may do so at once: they share the batches.
    """
    began = time.time() if began is None else began
    if interrupt is not None:
        return _run(parts, config, interrupt, began)
    interrupt = Interrupt()
    with interrupt.listening():
        code = _run(parts, config, interrupt, began)
    interrupt.pass_on()
    return code


def _run(parts: Parts, config: Mapping[str, Any], interrupt: Interrupt, began: float) -> int:
    with preparing():
        work = prepare(parts, config)
    interrupt.check()
    folder, names, batches = work.folder, work.names, work.batches
    try:
        check_writable(folder.path)
    except Unwritable as error:
        return _shown(work, error)
    process, logger = Process.own(), Unfailing(parts.logger)
    claims = Claims(folder.path / "claims", config["claim"]["lease"], process)

    def solve(name: str, claim: Claim) -> None:
        first, asked = batch_span(name).start, retry.refuse(batches[name])

        def attempt(start: int, stop: int, told: Sequence[str]) -> None:
            part, path = asked[start:stop], folder.checkpoint(batch_name(first + start, stop - start))
            every = config["checkpoint"]["every"]
            solve_batch(work.answer, part, folder, path, every, interrupt, claim, bar, logger, told)

        retry(asked, attempt)
        folder.drop_states(name)
        page()

    def refresh() -> None:
        folder.collect(names, "running", "", parts.task.summarise)
        write_page(folder.path)

    state, reason, code = "running", "", DONE
    note = partial(folder.write_attempt, process, began, prepared=time.time() - began)
    try:
        folder.repair(names)
        folder.retry(names, claims.at_work)
        folder.write_config(config)
        folder.write_manifest(work.manifest)
        note("running", "")
        folder.collect(names, "running", "", parts.task.summarise)
        logger.start(folder.path, dict(config), work.key, config["name"].split("/")[0])
        solved = sum(len(batch) for batch in batches.values() if work.done(batch))
        with claims.present(), progress(len(names), solved) as bar, Background(refresh) as page:
            retry = Retry(folder, bar, parts.generator.device, work.answer.formats, process.name)
            share(batches, work.done, claims, config["claim"]["wait"], solve, bar)
            page.wait()
        interrupt.check()
        state = "done"
    except Stopped as stop:
        state, reason, code = "stopped", stop.line, stop.code
    except Unwritable as error:
        state, reason, code = "failed", f"{error} (outputs={config['outputs']})", FAILED
    except DeviceLost as error:
        state, reason, code = "failed", f"{error}; the same command continues", FAILED
    finally:
        with interrupt.deferred():
            if state == "running" and (raised := sys.exception()) is not None:
                state, reason = "failed", f"{type(raised).__name__}: {first_line(raised)}"
            logger.finish()
            status = _collect(folder, names, process, note, state, reason, parts.task.summarise)
    if code == DONE and status["pending"]:
        code, reason = PENDING, f"{status['pending']} problems are left to other processes"
    return _say(work, status, code, reason)


def _shown(work: Work, refusal: Unwritable) -> int:
    """The exit code of a finished run whose folder cannot be written, such as another user's. Raises UserError if
    something is left to do."""
    damaged = {path.parent.name for path in work.folder.damage(work.names)}
    left = [name for name in work.names if name in damaged or not work.folder.done(name)]
    if left:
        raise UserError(f"{refusal}; {len(left)} of {len(work.names)} problems are not done there")
    failures = work.folder.failures(work.names)
    return _say(work, {"failures": failures, "failed": len(failures)}, DONE, "")


def _sized(
    parts: Parts, answer: Solver, batch: int | Literal["auto"], folder: RunFolder, problems: int
) -> tuple[int, Plan | None]:
    """How many problems a batch has, and what was chosen by memory, None where nothing is left to it."""
    size = None if batch == "auto" else batch
    if size is not None and parts.generator.recompute != "auto":
        return size, None
    known = size or folder.noted_batch()
    chosen = fit(parts, answer, known, problems)
    return known or folder.note_batch(chosen.batch), chosen


def _collect(
    folder: RunFolder, names: Sequence[str], process: Process, note: Callable[[str, str], None], state: str,
    reason: str, summarise: Summarise,
) -> dict[str, Any]:  # fmt: skip
    """The final status; where nothing can be written any more, what could be written before stays. Of a run that failed
    before its first problem nothing stays."""
    if state == "failed" and folder.untouched(process):
        folder.remove()
        return {"failures": [], "failed": 0, "pending": len(names)}
    try:
        status = folder.collect(names, state, reason, summarise)
        note(status["state"], reason)
        status["headline"] = write_page(folder.path)
    except Unwritable:
        return {"failures": [], "failed": 0, "pending": len(names)}
    return status


def _say(work: Work, status: Mapping[str, Any], code: int, reason: str) -> int:
    """The last lines of a run and its exit code, which follow from the problems that are asked for."""
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
