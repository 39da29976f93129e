"""Overhead of a run of many problems: preparation, start with many finished problems, tables and page, and memory."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.protocols import TaskInputs
from classifier_lens.runner.report.background_refresh import REST_FACTOR
from classifier_lens.runner.report.page import write_report
from classifier_lens.runner.result_schema import COMMON_IMAGES
from classifier_lens.runner.results.manifest import problem_digests
from classifier_lens.runner.results.run_folder import RunFolder, write_png
from classifier_lens.scripts.bench.result_line import ResultLine
from classifier_lens.tasks.analysis.success import success_counts

PROBLEM_COUNTS = (10_000, 50_000)
TERMS = ("class_log_prob", "latent_distance", "pixel_distance", "total", "confidence")
IMAGES = [image.key for image in COMMON_IMAGES]


def large_runs(repeats: int) -> list[ResultLine]:
    """Runs of many problems, in CPU seconds, without the influence of disks and other processes."""
    del repeats
    return [line for count in PROBLEM_COUNTS for line in (preparation(count), *startup(count))]


def preparation(count: int) -> ResultLine:
    """Preparation of counterfactuals for `count` photographs of ImageNet's size in a folder."""
    with TemporaryDirectory() as folder:
        write_photographs(Path(folder), count)
        overrides = (
            "data=folder",
            f"data.path={folder}",
            "task.target=viaduct",
            "logger=none",
            "generator=planted_lcm",
        )
        parts = build(compose_config(overrides))
        task_inputs = TaskInputs(parts.data, parts.classifier, parts.generator, 0, None)
        prepared: list[Any] = []

        def prepare() -> None:
            problems, _ = parts.task.problems(task_inputs)
            prepared.extend((problem, problem_digests(problem)) for problem in problems)

        total_seconds, memory = cpu_seconds_and_memory(prepare)
    detail = f"{total_seconds:.0f} s for images of a folder, without decoding; {memory:.0f} MiB of memory"
    return ResultLine(
        f"preparing {count} problems", 1000 * total_seconds / count, "ms", detail, 1.0, higher_is_better=False
    )


def startup(count: int) -> list[ResultLine]:
    """Start of a run with `count` finished problems."""
    with TemporaryDirectory() as folder, patch.object(os, "fsync"):
        path = Path(folder) / "run"
        names = write_finished_run(path, count)
        first_seconds, _ = cpu_seconds_and_memory(lambda: RunFolder(path).repair(names))
        run = RunFolder(path)

        def start() -> None:
            run.repair(names)
            run.clear_failures(names, lambda process: False)
            collect(run, names)

        def refresh() -> None:
            collect(run, names)
            write_report(path)

        start_seconds, memory = cpu_seconds_and_memory(start)
        refresh_seconds, _ = cpu_seconds_and_memory(refresh)
    start_detail = f"per problem; {start_seconds:.0f} s and {memory:.0f} MiB"
    start_detail += f", {first_seconds:.0f} s more if every file is read for the first time"
    refresh_detail = f"of the time at most; {refresh_seconds:.1f} s, then a pause of {REST_FACTOR:g} times as long"
    return [
        ResultLine(
            f"start with {count} done", 1000 * start_seconds / count, "ms", start_detail, 1.0, higher_is_better=False
        ),
        ResultLine(f"tables and page with {count} done", 100 / (1 + REST_FACTOR), "%", refresh_detail),
    ]


def collect(run: RunFolder, names: Sequence[str]) -> None:
    run.collect(names, "running", "", success_counts)


def write_photographs(folder: Path, count: int) -> None:
    """Write `count` files of 500 x 375 px, of which a thousand each share their content."""
    class_folder = folder / "rock crab"
    class_folder.mkdir()
    for i in range(count):
        if i % 1000 == 0:
            Image.effect_noise((500, 375), 60).convert("RGB").save(class_folder / f"{i:06}.jpg")
        else:
            os.link(class_folder / f"{i - i % 1000:06}.jpg", class_folder / f"{i:06}.jpg")


def write_finished_run(path: Path, count: int) -> list[str]:
    """Write `count` results of 20 steps with five images each; returns the names of the problems."""
    run, names = RunFolder(path), [f"crab-{i:05}-viaduct" for i in range(count)]
    write_png(path / "image.png", torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)))
    image = (path / "image.png").read_bytes()
    for i, name in enumerate(names):
        run.problem_folder(name).mkdir(parents=True)
        files = {key: run.problem_folder(name) / f"{key}.png" for key in IMAGES}
        for file in files.values():
            file.write_bytes(image)
        value = (i * 7919 % count) / count
        confidences = {"rock crab": value, "viaduct": 1 - value}
        run.write_result(name, {
            "name": name, "success": i % 3 > 0, "success_start": False, "source": "rock crab", "target": "viaduct",
            **{f"confidence_{stage}": confidences for stage in ("before", "start", "after")}, "seconds": 12.34,
            "loss": dict.fromkeys(TERMS, value), "images": {k: str(f.relative_to(path)) for k, f in files.items()},
            "history": [{"step": k, **dict.fromkeys(TERMS, value + k / 7)} for k in range(21)],
        })  # fmt: skip
    return names


def cpu_seconds_and_memory(call: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of a call, and the MiB by which this process grows."""
    gc.collect()
    before, started = resident_memory(), time.process_time()
    call()
    return time.process_time() - started, max(resident_memory() - before, 0.0)


def resident_memory() -> float:
    """MiB of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
