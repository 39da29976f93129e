"""What a run of many problems costs beside the problems themselves: its preparation, its start where many are done, its
tables and page, and its memory."""

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

PROBLEM_COUNTS = (10_000, 50_000)  # problems
TERMS = ("class_log_prob", "latent_distance", "pixel_distance", "total", "confidence")
IMAGES = [image.key for image in COMMON_IMAGES]


def large_runs(repeats: int) -> list[ResultLine]:
    """Runs of many problems, by the seconds of a processor: disks and other processes are not what is compared."""
    del repeats
    return [line for count in PROBLEM_COUNTS for line in (preparation(count), *startup(count))]


def preparation(count: int) -> ResultLine:
    """Counterfactuals of so many photographs of ImageNet's size in a folder."""
    with TemporaryDirectory() as place:
        write_photographs(Path(place), count)
        words = ("data=folder", f"data.path={place}", "task.target=viaduct", "logger=none", "generator=planted_lcm")
        parts = build(compose_config(words))
        world = TaskInputs(parts.data, parts.classifier, parts.generator, 0, None)
        held: list[Any] = []

        def prepare() -> None:
            problems, _ = parts.task.problems(world)
            held.extend((problem, problem_digests(problem)) for problem in problems)

        took, more = cpu_seconds_and_memory(prepare)
    detail = f"{took:.0f} s for images of a folder, none of which is decoded; {more:.0f} MiB are held"
    return ResultLine(f"preparing {count} problems", 1000 * took / count, "ms", detail, 1.0, higher_is_better=False)


def startup(count: int) -> list[ResultLine]:
    """A run in whose folder so many problems are done."""
    with TemporaryDirectory() as place, patch.object(os, "fsync"):
        path = Path(place) / "run"
        names = write_finished_run(path, count)
        first, _ = cpu_seconds_and_memory(lambda: RunFolder(path).repair(names))
        run = RunFolder(path)

        def start() -> None:
            run.repair(names)
            run.clear_failures(names, lambda process: False)
            collect(run, names)

        def refresh() -> None:
            collect(run, names)
            write_report(path)

        took, more = cpu_seconds_and_memory(start)
        again, _ = cpu_seconds_and_memory(refresh)
    each = (
        f"of each problem; {took:.0f} s and {more:.0f} MiB, {first:.0f} s more where every file is read the first time"
    )
    share = (
        f"of the seconds at most; {again:.1f} s, then none for {REST_FACTOR:g} times as long, however many batches end"
    )
    return [
        ResultLine(f"start with {count} done", 1000 * took / count, "ms", each, 1.0, higher_is_better=False),
        ResultLine(f"tables and page with {count} done", 100 / (1 + REST_FACTOR), "%", share),
    ]


def collect(run: RunFolder, names: Sequence[str]) -> None:
    run.collect(names, "running", "", success_counts)


def write_photographs(folder: Path, count: int) -> None:
    """So many files of 500 x 375 px, of which a thousand each share their content."""
    place = folder / "rock crab"
    place.mkdir()
    for i in range(count):
        if i % 1000 == 0:
            Image.effect_noise((500, 375), 60).convert("RGB").save(place / f"{i:06}.jpg")
        else:
            os.link(place / f"{i - i % 1000:06}.jpg", place / f"{i:06}.jpg")


def write_finished_run(path: Path, count: int) -> list[str]:
    """So many results of 20 steps, each with five images."""
    run, names = RunFolder(path), [f"crab-{i:05}-viaduct" for i in range(count)]
    write_png(path / "image.png", torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)))
    image = (path / "image.png").read_bytes()
    for i, name in enumerate(names):
        run.problem_folder(name).mkdir(parents=True)
        files = {key: run.problem_folder(name) / f"{key}.png" for key in IMAGES}
        for file in files.values():
            file.write_bytes(image)
        value = (i * 7919 % count) / count
        seen = {"rock crab": value, "viaduct": 1 - value}
        run.write_result(name, {
            "name": name, "success": i % 3 > 0, "success_start": False, "source": "rock crab", "target": "viaduct",
            **{f"confidence_{stage}": seen for stage in ("before", "start", "after")}, "seconds": 12.34,
            "loss": dict.fromkeys(TERMS, value), "images": {k: str(f.relative_to(path)) for k, f in files.items()},
            "history": [{"step": k, **dict.fromkeys(TERMS, value + k / 7)} for k in range(21)],
        })  # fmt: skip
    return names


def cpu_seconds_and_memory(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a processor that a call takes, and MiB that this process holds more after it."""
    gc.collect()
    before, began = resident_memory(), time.process_time()
    call()
    return time.process_time() - began, max(resident_memory() - before, 0.0)


def resident_memory() -> float:
    """MiB of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
