"""Measures of complete commands: growth with the number of images, start, resuming, logging, memory limits."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

import classifier_lens.runner.run
from classifier_lens.runner import batch
from classifier_lens.runner.batch import Solver
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.logging.logger import NullLogger
from classifier_lens.runner.optimization import checkpoint
from classifier_lens.runner.paths import ROOT
from classifier_lens.runner.results import run_folder
from classifier_lens.runner.results.run_folder import RunFolder, write_png
from classifier_lens.runner.run import run
from classifier_lens.scripts.bench.result_line import ResultLine, speedup
from classifier_lens.scripts.bench.step_timing import optimization_states, prepare_step
from classifier_lens.scripts.bench.timed_run import prepare_run
from classifier_lens.scripts.bench.timing import fit_line, peak_memory, seconds

CGROUP_ROOT = Path("/sys/fs/cgroup/memory")  # version 1; creating groups needs root
SHORT_RUN_OVERRIDES = ("logger=none", "optimizer.steps=1", "generator.null_text.inner_steps=1")


def run_command(overrides: Sequence[str], outputs: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Run `python run.py` with these overrides to its end. before: command that starts it."""
    return subprocess.run(
        [*before, sys.executable, str(ROOT / "run.py"), *overrides, f"outputs={outputs}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


# --- memory --------------------------------------------------------------------------------------------------


def peak_step_memory(overrides: Sequence[str], batch: int) -> int:
    """Bytes that a step of a batch needs above the memory between two steps, measured in a separate process."""
    outcome = subprocess.run(
        [sys.executable, "-m", "classifier_lens.scripts.bench.command_measures", str(batch), *overrides],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return int(outcome.stdout.split()[-1])


def memory_limit(gib: int) -> ResultLine:
    """batch=auto in a control group with a memory limit, which kills a process that exceeds it."""
    if not os.access(CGROUP_ROOT, os.W_OK):
        return ResultLine(f"batch=auto in {gib} GiB", float("nan"), "", f"skipped: {CGROUP_ROOT} is not writable")
    group = CGROUP_ROOT / f"bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(gib * 2**30))
        enter_group = ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
        with TemporaryDirectory() as outputs:
            outcome = run_command((*SHORT_RUN_OVERRIDES, "batch=auto", "limit=8"), outputs, *enter_group)
        used = int((group / "memory.max_usage_in_bytes").read_text())
    finally:
        group.rmdir()
    match = re.search(r"batch=auto: (.*)", outcome.stdout)
    detail = f"exit code {outcome.returncode}; {match[1] if match else outcome.stderr.strip()}"
    share = 100 * used / 2**30 / gib if outcome.returncode == 0 else float("inf")
    return ResultLine(
        f"batch=auto in {gib} GiB", share, "%", f"of the limit used; {detail}", 100.0, higher_is_better=False
    )


# --- time ----------------------------------------------------------------------------------------------------


def scaling(repeats: int) -> list[ResultLine]:
    """Seconds by the number of images."""
    del repeats
    counts, times = (2, 4, 6, 8, 12), []
    for count in counts:
        with TemporaryDirectory() as outputs:
            started = time.perf_counter()
            run_command((*SHORT_RUN_OVERRIDES, f"limit={count}", "batch=2"), outputs).check_returncode()
            times.append(time.perf_counter() - started)
    intercept, slope, r_squared = fit_line(counts, times)
    detail = f"{slope:.2f} s per image with one step, and {intercept:.1f} s; {counts[0]} to {counts[-1]} images"
    return [ResultLine("linear growth with images, R²", r_squared, "", detail, 0.99)]


def overhead(repeats: int) -> list[ResultLine]:
    """The start of a run, and the overhead of resuming and logging."""
    starts = [_start() for _ in range(repeats)]
    started = ResultLine(
        "start of python run.py", median(starts), "s", "to its first batch", 8.0, higher_is_better=False
    )
    return [
        started,
        *logging_and_resuming(("limit=4", "batch=4", "logger=wandb", "logger.mode=offline")),
        image_writing(),
    ]


def durability(repeats: int) -> list[ResultLine]:
    """The overhead of durable files and of digests."""
    del repeats
    return [durability_of_sampler(sampler) for sampler in ("ddim", "lcm")]


def durability_of_sampler(sampler: str) -> ResultLine:
    """The overhead for four counterfactuals of a sampler. Waiting times of threads are added up; the folder is on the
    disk of the checkout, since temporary files are often in memory."""
    with TemporaryDirectory(dir=ROOT) as outputs:
        config = compose_config(["limit=4", "batch=4", "logger=none", f"sampler={sampler}", f"outputs={outputs}"])
        parts = build(config)
        with redirect_stdout(io.StringIO()), time_calls(DURABILITY_CALLS) as seconds_by_call:
            total_seconds = seconds(lambda: run(parts, config))
    return _share(f"durability of a run, {sampler}", seconds_by_call, total_seconds, 1.0)


def image_writing() -> ResultLine:
    """Writing of images of Stable Diffusion's size, as many as eight counterfactuals have, by the runner's threads."""
    coarse = torch.rand(48, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(coarse, size=512, mode="bicubic").clamp(0, 1)
    with TemporaryDirectory() as folder, ThreadPoolExecutor(batch.WRITER_THREADS) as writers:
        files = [Path(folder) / f"{i}.png" for i in range(len(images))]
        threaded_seconds = seconds(lambda: list(writers.map(write_png, files, images)))
        serial_seconds = seconds(lambda: list(map(write_png, files, images)))
    return speedup("  writing 48 images of 512 px", threaded_seconds, serial_seconds, names=("threads", "one by one"))


def _start() -> float:
    """Seconds from the command to the first batch."""
    with TemporaryDirectory() as outputs:
        command = [sys.executable, str(ROOT / "run.py"), "limit=1", "logger=none", f"outputs={outputs}"]
        start_time = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("batch of"):
                    break
            start_seconds = time.perf_counter() - start_time
            process.kill()
    return start_seconds


def logging_and_resuming(overrides: Sequence[str]) -> list[ResultLine]:
    """The overhead of logging in `python run.py <overrides>` with one batch, and of resuming a run that was stopped
    halfway."""
    with TemporaryDirectory() as outputs:
        config = compose_config([*overrides, f"outputs={outputs}"])
        parts = build(config)
        quiet = replace(parts, logger=NullLogger())
        with redirect_stdout(io.StringIO()):
            run(quiet, {**config, "name": "bench/inversions"})  # cached for the runs below
            with time_calls(LOGGING_CALLS) as logging_seconds:
                total_seconds = seconds(lambda: run(parts, {**config, "name": "bench/whole"}))
            threading.Timer(total_seconds / 2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            run(quiet, {**config, "name": "bench/cut"})
            with time_calls(RESUME_CALLS) as resume_seconds:
                run(quiet, {**config, "name": "bench/cut"})
    return [
        _share("logging of a run", logging_seconds, total_seconds, 3.0),
        _share("resuming of a run", resume_seconds, total_seconds, 2.0),
    ]


def _share(name: str, seconds_by_call: Mapping[str, float], total_seconds: float, threshold: float) -> ResultLine:
    summary = ", ".join(f"{part.strip('_')} {value:.2f} s" for part, value in seconds_by_call.items())
    return ResultLine(
        name,
        100 * sum(seconds_by_call.values()) / total_seconds,
        "%",
        f"of {total_seconds:.1f} s: {summary}",
        threshold,
        higher_is_better=False,
    )


# Curves and console, images and results, tables and page of a run.
LOGGING_CALLS = (
    (batch, "report_progress"),
    (batch, "save_result"),
    (RunFolder, "collect"),
    (classifier_lens.runner.run, "write_page"),
)
# Waiting for the disk, digests of files and problems, comparisons at the start.
DURABILITY_CALLS = (
    (os, "fsync"), (run_folder, "add_file_digests"), (classifier_lens.runner.run, "make_manifest"),
    (RunFolder, "write_manifest"), (RunFolder, "check_manifest"), (RunFolder, "repair"),
)  # fmt: skip
# Preparing a started batch again, and reading its saved state.
RESUME_CALLS = ((Solver, "initialize"), (checkpoint, "load"), (checkpoint, "save"))


@contextmanager
def time_calls(calls: Sequence[tuple[Any, str]]) -> Iterator[dict[str, float]]:
    """The seconds of calls within the context, by name. calls: pairs of an owner and the name of its function."""
    seconds_by_call: dict[str, float] = {}
    with ExitStack() as stack:
        for owner, name in calls:
            stack.enter_context(patch.object(owner, name, _clocked(getattr(owner, name), name, seconds_by_call)))
        yield seconds_by_call


def _clocked(call: Callable[..., Any], name: str, seconds_by_call: dict[str, float]) -> Callable[..., Any]:
    """The same function, which adds its seconds under its name."""

    def clocked(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            seconds_by_call[name] = seconds_by_call.get(name, 0.0) + time.perf_counter() - started

    return clocked


if __name__ == "__main__":
    inputs = prepare_step(prepare_run(sys.argv[2:], int(sys.argv[1])))
    states = optimization_states(inputs)
    next(states)
    before = peak_memory(lambda: None)
    print(peak_memory(lambda: next(states)) - before)
