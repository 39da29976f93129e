"""What a run leaves behind: a folder per problem, results.jsonl, status.json; a file appears whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from runner.claims import Process
from runner.files import write

# What the results follow from: two commands that agree in it continue the same run. Everything else in a configuration
# is either referred to by these or changes no result.
PART_OF_THE_RUN = (
    "generator",
    "classifier",
    "data",
    "select",
    "task",
    "controls",
    "baseline",
    "optimizer",
    "augment",
    "safety",
    "seed",
    "batch",
    "threads",
)
# Where a part computes and what it keeps follow from `device` and `outputs`; which weights it reads is told by hashes.
ELSEWHERE = ("device", "cache", "variant")

Summarise = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]


def run_key(config: Mapping[str, Any], digests: Sequence[str]) -> str:
    """Ten letters that follow from the resolved configuration and the weights' hashes."""
    kept = {key: _without_places(config[key]) for key in PART_OF_THE_RUN if key in config}
    text = json.dumps([kept, list(digests)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _without_places(value: Any) -> Any:
    """A part's settings without those of `ELSEWHERE`, at any depth."""
    if isinstance(value, Mapping):
        return {k: _without_places(v) for k, v in value.items() if k not in ELSEWHERE}
    return [_without_places(v) for v in value] if isinstance(value, (list, tuple)) else value


def to_8_bits(picture: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """A picture in [0, 1] as a file would hold it."""
    return (picture.detach().float().clamp(0, 1) * 255).round() / 255


def write_png(path: Path, picture: Float[Tensor, "c h w"]) -> None:
    """Save a picture in [0, 1], three channels or one, with 8 bits."""
    pixels = (to_8_bits(picture) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
    write(path, buffer.getvalue())


def read_png(path: Path) -> Float[Tensor, "3 h w"]:
    """A saved picture in [0, 1]."""
    with Image.open(path) as file:
        return torch.from_numpy(np.asarray(file.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def to_json(value: Any) -> Any:
    """Numbers that JSON has no word for become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: to_json(v) for k, v in value.items()}
    return [to_json(v) for v in value] if isinstance(value, (list, tuple)) else value


def batch_name(start: int, count: int) -> str:
    """The name of a batch by the positions of its problems."""
    return f"problems-{start:05d}-{start + count:05d}"


def batch_span(name: str) -> tuple[int, int]:
    """The positions of a batch's first problem and of the one behind its last."""
    _, start, stop = name.split("-")
    return int(start), int(stop)


class RunFolder:
    """A run's folder. Problems are done when their `result.json` or `failure.json` exists."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def problem(self, name: str) -> Path:
        return self.path / "images" / name

    def checkpoint(self, batch: str) -> Path:
        """The state of an unfinished batch."""
        return self.path / "state" / f"{batch}.safetensors"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """The resolved configuration; the first command that made the run stays in it."""
        if not (self.path / "config.yaml").exists():
            write(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))

    def write_names(self, names: Sequence[str]) -> None:
        """The problems that are asked for, in their order; a process that asks for fewer of them changes nothing."""
        path = self.path / "problems.txt"
        if len(names) > len((_text(path) or "").splitlines()):
            write(path, "".join(f"{name}\n" for name in names))

    def noted_batch(self) -> int | None:
        """How many problems a batch has, where the first process chose it by its memory."""
        text = _text(self.path / "batch")
        return None if text is None else int(text)

    def note_batch(self, chosen: int) -> int:
        """Note it; returns what another process may have noted before."""
        with self._writer():
            if (noted := self.noted_batch()) is None:
                write(self.path / "batch", f"{chosen}\n")
        return noted or chosen

    def write_attempt(self, process: Process, began: float, state: str, reason: str) -> None:
        """That a process works at the run, or how it ended; a process may do so more than once."""
        record = {**asdict(process), "began": began, "noted": time.time(), "state": state, "reason": reason}
        write(self.path / "attempts" / f"{began:.0f}-{process.name}.json", json.dumps(record, indent=1))

    def done(self, name: str) -> bool:
        return any((self.problem(name) / file).exists() for file in ("result.json", "failure.json"))

    def write_result(self, name: str, record: Mapping[str, Any]) -> None:
        write(self.problem(name) / "result.json", json.dumps(to_json(record), indent=1, allow_nan=False))

    def write_failure(self, name: str, error: str) -> None:
        write(self.problem(name) / "failure.json", json.dumps({"name": name, "error": error}))

    def collect(self, names: Sequence[str], state: str, reason: str, summarise: Summarise) -> dict[str, Any]:
        """Rebuild results.jsonl in problem order, summary.json and status.json from the problems' own files; returns
        the status."""
        with self._writer():
            results = [json.loads(t) for n in names if (t := _text(self.problem(n) / "result.json")) is not None]
            failures = [json.loads(t) for n in names if (t := _text(self.problem(n) / "failure.json")) is not None]
            write(self.path / "results.jsonl", "".join(json.dumps(r, allow_nan=False) + "\n" for r in results))
            write(self.path / "summary.json", json.dumps(to_json(summarise(results)), indent=1, allow_nan=False))
            pending = len(names) - len(results) - len(failures)
            if state == "done" and pending:  # other processes work at what is left
                state = "pending"
            status = {
                "state": state, "done": len(results), "failed": len(failures), "pending": pending, "reason": reason,
                "failures": failures,
            }  # fmt: skip
            write(self.path / "status.json", json.dumps(status, indent=1))
        return status

    @contextmanager
    def _writer(self) -> Iterator[None]:
        """One writer at a time, across processes."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None
