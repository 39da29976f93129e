"""What the benchmark measures of whole commands: growth, start, resuming, logging, and memory under limits."""

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
from classifier_lens.scripts.bench import measures as measures
from classifier_lens.scripts.bench.result_line import ResultLine, speedup
from classifier_lens.scripts.bench.timing import fit_line, peak_memory, seconds

CGROUP_ROOT = Path("/sys/fs/cgroup/memory")  # version 1; one's own groups below it need root
SHORT_RUN_OVERRIDES = ("logger=none", "optimizer.steps=1", "generator.null_text.inner_steps=1")


def run_command(words: Sequence[str], outputs: str, *before: str) -> subprocess.CompletedProcess[str]:
    """`python run.py` with these words, to its end; before: what is to start it."""
    return subprocess.run(
        [*before, sys.executable, str(ROOT / "run.py"), *words, f"outputs={outputs}"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip


# --- memory --------------------------------------------------------------------------------------------------


def peak_step_memory(words: Sequence[str], batch: int) -> int:
    """Bytes that a step of a batch takes beyond what is kept between two steps, in a process of its own."""
    outcome = subprocess.run(
        [sys.executable, "-m", "classifier_lens.scripts.bench.command_measures", str(batch), *words],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return int(outcome.stdout.split()[-1])


def memory_limit(gib: int) -> ResultLine:
    """batch=auto in a control group of so much memory, which ends a process that takes more."""
    if not os.access(CGROUP_ROOT, os.W_OK):
        return ResultLine(f"batch=auto in {gib} GiB", float("nan"), "", f"skipped: {CGROUP_ROOT} cannot be written to")
    group = CGROUP_ROOT / f"bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(gib * 2**30))
        enter = ("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")
        with TemporaryDirectory() as outputs:
            outcome = run_command((*SHORT_RUN_OVERRIDES, "batch=auto", "limit=8"), outputs, *enter)
        used = int((group / "memory.max_usage_in_bytes").read_text())
    finally:
        group.rmdir()
    said = re.search(r"batch=auto: (.*)", outcome.stdout)
    detail = f"exit code {outcome.returncode}; {said[1] if said else outcome.stderr.strip()}"
    share = 100 * used / 2**30 / gib if outcome.returncode == 0 else float("inf")
    return ResultLine(f"batch=auto in {gib} GiB", share, "%", f"of it used; {detail}", 100.0, higher_is_better=False)


# --- time ----------------------------------------------------------------------------------------------------


def scaling(repeats: int) -> list[ResultLine]:
    """Seconds over the number of pictures."""
    del repeats
    counts, times = (2, 4, 6, 8, 12), []
    for count in counts:
        with TemporaryDirectory() as outputs:
            began = time.perf_counter()
            run_command((*SHORT_RUN_OVERRIDES, f"limit={count}", "batch=2"), outputs).check_returncode()
            times.append(time.perf_counter() - began)
    start, slope, fit = fit_line(counts, times)
    detail = f"{slope:.2f} s per picture of one step, and {start:.1f} s; {counts[0]} to {counts[-1]} pictures"
    return [ResultLine("growth with the pictures, R²", fit, "", detail, 0.99)]


def overhead(repeats: int) -> list[ResultLine]:
    """Start of a run, and what resuming and logging add."""
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
    """What it costs that a run outlasts a power cut and knows what it follows from."""
    del repeats
    return [durability_of_sampler(sampler) for sampler in ("ddim", "lcm")]


def durability_of_sampler(sampler: str) -> ResultLine:
    """Of four counterfactuals of a sampler. Threads' waiting for the disk is counted as if it was one after the other;
    the folder is the checkout's, since temporary files often lie in memory."""
    with TemporaryDirectory(dir=ROOT) as outputs:
        config = compose_config(["limit=4", "batch=4", "logger=none", f"sampler={sampler}", f"outputs={outputs}"])
        parts = build(config)
        with redirect_stdout(io.StringIO()), time_calls(DURABILITY_CALLS) as spent:
            whole = seconds(lambda: run(parts, config))
    return _share(f"durability of a run, {sampler}", spent, whole, 1.0)


def image_writing() -> ResultLine:
    """Pictures of Stable Diffusion's size, as many as eight counterfactuals have, by the runner's threads."""
    coarse = torch.rand(48, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pictures = F.interpolate(coarse, size=512, mode="bicubic").clamp(0, 1)
    with TemporaryDirectory() as folder, ThreadPoolExecutor(batch.WRITER_THREADS) as writers:
        files = [Path(folder) / f"{i}.png" for i in range(len(pictures))]
        beside = seconds(lambda: list(writers.map(write_png, files, pictures)))
        alone = seconds(lambda: list(map(write_png, files, pictures)))
    return speedup("  writing 48 pictures of 512 px", beside, alone, names=("threads", "one by one"))


def _start() -> float:
    """Seconds from the command to its first batch."""
    with TemporaryDirectory() as outputs:
        words = [sys.executable, str(ROOT / "run.py"), "limit=1", "logger=none", f"outputs={outputs}"]
        began = time.perf_counter()
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as started:
            assert started.stdout is not None
            for line in started.stdout:
                if line.startswith("batch of"):
                    break
            took = time.perf_counter() - began
            started.kill()
    return took


def logging_and_resuming(words: Sequence[str]) -> list[ResultLine]:
    """What logging adds to `python run.py <words>`, of one batch, and what is done once more where it was stopped
    halfway."""
    with TemporaryDirectory() as outputs:
        config = compose_config([*words, f"outputs={outputs}"])
        parts = build(config)
        quiet = replace(parts, logger=NullLogger())
        with redirect_stdout(io.StringIO()):
            run(quiet, {**config, "name": "bench/inversions"})  # which the runs below find in the cache
            with time_calls(LOGGING_CALLS) as told:
                whole = seconds(lambda: run(parts, {**config, "name": "bench/whole"}))
            threading.Timer(whole / 2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            run(quiet, {**config, "name": "bench/cut"})
            with time_calls(RESUME_CALLS) as again:
                run(quiet, {**config, "name": "bench/cut"})
    return [_share("logging of a run", told, whole, 3.0), _share("resuming of a run", again, whole, 2.0)]


def _share(name: str, spent: Mapping[str, float], whole: float, bar: float) -> ResultLine:
    told = ", ".join(f"{part.strip('_')} {value:.2f} s" for part, value in spent.items())
    return ResultLine(
        name, 100 * sum(spent.values()) / whole, "%", f"of {whole:.1f} s: {told}", bar, higher_is_better=False
    )


# Curves and the console, pictures and results, the tables of a run, its page.
LOGGING_CALLS = (
    (batch, "tell"),
    (batch, "write_answer"),
    (RunFolder, "collect"),
    (classifier_lens.runner.run, "write_page"),
)
# Waiting for the disk, digests of files and of problems, what a start compares.
DURABILITY_CALLS = (
    (os, "fsync"), (run_folder, "with_digests"), (classifier_lens.runner.run, "manifest_of"),
    (RunFolder, "write_manifest"), (RunFolder, "check"), (RunFolder, "repair"),
)  # fmt: skip
# A batch that was begun is prepared again, and what was saved of it is read.
RESUME_CALLS = ((Solver, "initialize"), (checkpoint, "load"), (checkpoint, "save"))


@contextmanager
def time_calls(calls: Sequence[tuple[Any, str]]) -> Iterator[dict[str, float]]:
    """The seconds of calls by their names, each given as what has it and its name, as they are spent within."""
    spent: dict[str, float] = {}
    with ExitStack() as stack:
        for owner, name in calls:
            stack.enter_context(patch.object(owner, name, _clocked(getattr(owner, name), name, spent)))
        yield spent


def _clocked(call: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """The same call, whose seconds are added up under its name."""

    def clocked(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

    return clocked


if __name__ == "__main__":
    own = measures.prepare_step(measures.prepare_run(sys.argv[2:], int(sys.argv[1])))
    states = measures.optimization_states(own)
    next(states)
    before = peak_memory(lambda: None)
    print(peak_memory(lambda: next(states)) - before)
