"""The run folder: a folder per problem, results.jsonl, status.json; every file appears whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from classifier_lens.runner.cluster.leases import Process
from classifier_lens.runner.files.atomic import (
    DamagedFileError,
    make_folder,
    quarantine,
    read,
    remove,
    try_read_text,
    wrap_write_errors,
    write_atomic,
    write_durable,
)
from classifier_lens.runner.result_schema import Record
from classifier_lens.runner.results import verified_files
from classifier_lens.runner.results.batch_names import batch_span
from classifier_lens.runner.results.integrity import (
    FAILURE_FILE,
    RESULT_FILE,
    add_file_digests,
    parse_config,
    parse_failure,
    parse_object,
)
from classifier_lens.runner.results.manifest import Manifest, file_digests
from classifier_lens.runner.results.problem_status import Outcomes
from classifier_lens.runner.types import NonFiniteError

# Settings on which results depend: two commands that agree in them continue the same run. These refer to all other
# settings that matter.
RUN_KEY_SETTINGS = (
    "generator",
    "classifier",
    "data",
    "select",
    "task",
    "parametrization",
    "baseline",
    "optimizer",
    "augment",
    "safety_checker",
    "seed",
    "batch",
    "threads",
)
# Settings that change no result: the device, the cache, and a variant of weights, which hashes identify.
LOCATION_SETTINGS = ("device", "cache", "variant")

LEASE_FOLDER = "leases"
SUBFOLDERS = ("images", "state", LEASE_FOLDER, "attempts")  # of a run folder
# Of the keys in result.json: results of another format are never continued, since their run has another key.
RESULT_FORMAT = 2

Summarize = Callable[[Sequence[Record]], Record]


def run_key(config: Mapping[str, Any], digests: Sequence[str]) -> str:
    """The run's hash, of ten letters: of the resolved configuration, the contents of the files that it names, and the
    digests of the parts. The manifest holds the digests of the problems."""
    settings = _settings(config)
    text = json.dumps([RESULT_FORMAT, settings, list(digests), file_digests(settings)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings on which results depend."""
    return {key: _without_places(config[key]) for key in RUN_KEY_SETTINGS if key in config}


def _without_places(value: Any) -> Any:
    """A part's settings without those of `LOCATION_SETTINGS`, at any depth, with normalized paths of folders."""
    if isinstance(value, Mapping):
        return {k: _without_places(v) for k, v in value.items() if k not in LOCATION_SETTINGS}
    if isinstance(value, str) and os.path.isdir(os.path.expanduser(value)):
        return os.path.normpath(value)  # shell completion appends a slash
    return [_without_places(v) for v in value] if isinstance(value, (list, tuple)) else value


def quantize_8bit(image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """An image in [0, 1] with the precision of its 8-bit file."""
    return (image.detach().float().clamp(0, 1) * 255).round() / 255


def write_png(path: Path, image: Float[Tensor, "c h w"]) -> None:
    """Save an image in [0, 1] of one or three channels with 8 bits; the next durable write to its folder makes its name
    durable."""
    pixels = (quantize_8bit(image) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def read_png(path: Path) -> Float[Tensor, "3 h w"]:
    """A saved image in [0, 1]."""
    with Image.open(path, formats=["PNG"]) as file:
        return torch.from_numpy(np.asarray(file.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def check_finite(value: Any, name: str = "") -> None:
    """Raises NonFiniteError with the key of a number that is not finite, at any depth of mappings and sequences. Values
    that are undefined by design are None."""
    if isinstance(value, float) and not math.isfinite(value):
        raise NonFiniteError(f"{name or 'a value'} is not finite")
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    for key, part in value.items() if isinstance(value, Mapping) else ():
        check_finite(part, f"{name}.{key}" if name else str(key))


class RunFolder:
    """A run's folder. Problems are done when their `result.json` or `failure.json` exists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._outcomes = Outcomes(path / "images")

    def problem_folder(self, name: str) -> Path:
        return self.path / "images" / name

    def checkpoint_path(self, batch: str) -> Path:
        """The file of an unfinished batch's state."""
        return self.path / "state" / f"{batch}.safetensors"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration, unless an earlier command wrote it."""
        if not self.has_settings(config):
            write_durable(self.path / "config.yaml", _as_yaml(config))

    def is_finished(self, config: Mapping[str, Any]) -> bool:
        """Whether a run with the same settings is done in this folder."""
        try:
            status = parse_object(read(self.path / "status.json"))
        except (FileNotFoundError, DamagedFileError):
            return False
        return status.get("state") == "done" and self.has_settings(config)

    def has_settings(self, config: Mapping[str, Any]) -> bool:
        """Whether the folder's configuration can be read and has the same settings."""
        try:
            stored = parse_config(read(self.path / "config.yaml"))
        except (FileNotFoundError, DamagedFileError):
            return False
        return _settings(stored) == _settings(parse_config(_as_yaml(config).encode()))

    def problem_names(self) -> list[str]:
        """The names of the problems of all commands, in order."""
        return (try_read_text(self.path / "problems.txt") or "").splitlines()

    def stored_manifest(self) -> Manifest | None:
        """The stored manifest, with the problems of all commands; None without a valid one."""
        try:
            return Manifest.from_json(read(self.path / "manifest.json"))
        except (FileNotFoundError, DamagedFileError):
            return None

    def check_manifest(self, manifest: Manifest) -> None:
        """Raise UserError if the run started with other problems or classifiers."""
        if (stored := self.stored_manifest()) is not None:
            manifest.check_compatible(stored, self.path)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest and the problems' names, unless the stored ones have more problems. Raises UserError as
        `check_manifest` does."""
        path, names = self.path / "manifest.json", self.path / "problems.txt"
        with self._writer():
            self.check_manifest(manifest)
            stored = self.stored_manifest()
            if stored is None and os.path.lexists(path):
                quarantine(path, "is no manifest")
            if stored is None or len(stored.problems) < len(manifest.problems):
                stored = manifest
                write_durable(path, manifest.to_json())
            if self.problem_names() != (all_names := list(stored.problems)):
                write_durable(names, "".join(f"{name}\n" for name in all_names))

    def stored_batch_size(self) -> int | None:
        """The batch size that the first process chose by its memory, None if none did."""
        text = (try_read_text(self.path / "batch") or "").strip()
        return int(text) if re.fullmatch("[1-9][0-9]{0,5}", text) else None

    def store_batch_size(self, size: int) -> int:
        """Store a batch size, unless another process stored one; returns the stored one."""
        with self._writer():
            if (stored := self.stored_batch_size()) is None:
                write_durable(self.path / "batch", f"{size}\n")
        return stored or size

    def write_attempt(
        self, process: Process, started_at: float, state: str, reason: str, preparation_seconds: float = 0.0
    ) -> None:  # fmt: skip
        """Record that a process works on the run, or how it ended. preparation_seconds: for loading and for preparing
        the problems."""
        record = {
            **asdict(process),
            "started_at": started_at,
            "preparation_seconds": round(preparation_seconds, 2),
            "updated_at": time.time(),
            "state": state,
            "reason": reason,
        }
        write_durable(self.path / "attempts" / f"{started_at:.0f}-{process.name}.json", json.dumps(record, indent=1))

    def repair(self, names: Sequence[str]) -> None:
        """Rename damaged files, with a printed line each, so that their problems are solved again. Intact files are
        recorded and not read again while they do not change. Raises UnwritableError."""
        damaged, intact = self._examined(names)
        for path in sorted(damaged):  # a folder before its content: a link points to other files
            quarantine(path, damaged[path])
        if intact:
            with self._writer():
                if (stored := verified_files.load(self.path)) != (states := stored | intact):
                    verified_files.save(self.path, states)

    def find_damage(self, names: Sequence[str]) -> dict[Path, str]:
        """Damaged files, with the reason of each."""
        return self._examined(names)[0]

    def _examined(self, names: Sequence[str]) -> tuple[dict[Path, str], dict[str, str]]:
        """The damaged files, and the states of the intact problems."""
        folders = (self.path, *(self.path / part for part in SUBFOLDERS))
        no_folders = {path: "is no folder" for path in folders if os.path.lexists(path) and not path.is_dir()}
        places = [self.problem_folder(name) for name in names]
        damaged, intact = verified_files.verify(self.path, places, verified_files.load(self.path))
        self._outcomes.update(names)
        return no_folders | self._outcomes.damage(names) | damaged, intact

    def is_unused(self, process: Process) -> bool:
        """Whether the folder has nothing to continue from, and no other process worked in it."""
        suffix = f"-{process.name}.json"
        attempts = [path.name for path in self.path.glob("attempts/*")]
        finished = [*self.path.glob("images/*/result.json"), *self.path.glob("images/*/failure.json")]
        return all(name.endswith(suffix) for name in attempts) and not [*finished, *self.path.glob("state/*")]

    def remove(self) -> None:
        """Remove the folder, and the folders of its task and parts above it if they are empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        for above in self.path.parents[:2]:
            with suppress(OSError):
                above.rmdir()

    def is_done(self, name: str) -> bool:
        return any((self.problem_folder(name) / file).exists() for file in (RESULT_FILE, FAILURE_FILE))

    def results(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The results of the solved problems."""
        self._outcomes.update(names)
        return [json.loads(line) for line in self._outcomes.lines(names)]

    def failures(self, names: Sequence[str]) -> list[Mapping[str, Any]]:
        """Name and error of the failed problems."""
        self._outcomes.update(names)
        return self._outcomes.failures(names)

    def write_result(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a result, after the files that it names. Raises NonFiniteError."""
        check_finite(record)
        with_digests = add_file_digests(self.path, record)
        write_durable(self.problem_folder(name) / RESULT_FILE, json.dumps(with_digests, indent=1, allow_nan=False))

    def write_failure(self, name: str, error: str, traceback: str | None = None, process_name: str = "") -> None:
        """Write the failure of a problem. traceback: of a raised error, None for a value that is not finite;
        process_name: of the process in which it was raised."""
        raised = {} if traceback is None else {"traceback": traceback, "process": process_name}
        write_durable(self.problem_folder(name) / FAILURE_FILE, json.dumps({"name": name, "error": error, **raised}))

    def clear_failures(self, names: Sequence[str], is_active: Callable[[str], bool]) -> None:
        """Remove failures by raised errors, whose cause may be repaired. Those of processes that are still active, by
        name, remain: a process that joins them would fail likewise."""
        for name in names:
            with suppress(FileNotFoundError, DamagedFileError):
                failure = parse_failure(read(self.problem_folder(name) / FAILURE_FILE), name)
                if "traceback" in failure and not is_active(str(failure.get("process", ""))):
                    remove(self.problem_folder(name) / FAILURE_FILE)

    def remove_checkpoints(self, batch: str) -> None:
        """Remove the states of a finished batch and of its parts."""
        span = batch_span(batch)
        for path in (self.path / "state").glob("problems-*-*.safetensors"):
            part = batch_span(path.stem)
            if part and span.start <= part.start and part.stop <= span.stop and not path.is_dir():
                remove(path)

    def collect(self, names: Sequence[str], state: str, reason: str, summarize: Summarize) -> dict[str, Any]:
        """Rebuild results.jsonl in problem order, summary.json and status.json from the problems' files, of which only
        new ones are read; returns the status.

        Finished problems of earlier commands beyond `names` are included; only `names` can be pending.
        """
        self._outcomes.update(self._all_names(names))  # before the lock, while no process waits
        with self._writer():
            all_names = self._all_names(names)
            self._outcomes.update(name for name in all_names if not self._outcomes.is_settled(name))
            write_atomic(self.path / "results.jsonl", (f"{line}\n" for line in self._outcomes.lines(all_names)))
            results = [_without_history(line) for line in self._outcomes.lines(all_names)]
            failures = self._outcomes.failures(all_names)
            pending = sum(not self._outcomes.is_settled(name) for name in names)
            if state == "done" and pending:  # other processes work on the rest
                state = "pending"
            status = {
                "state": state, "done": len(results), "failed": len(failures), "pending": pending, "reason": reason,
                "failures": failures,
            }  # fmt: skip
            write_atomic(self.path / "status.json", json.dumps(status, indent=1))
            write_atomic(self.path / "summary.json", json.dumps(summarize(results), indent=1, allow_nan=False))
        return status

    def _all_names(self, names: Sequence[str]) -> Sequence[str]:
        """These names, or those of all commands if these are more."""
        return stored if len(stored := self.problem_names()) > len(names) else names

    @contextmanager
    def _writer(self) -> Iterator[None]:
        """A lock: one writer at a time, across processes."""
        make_folder(self.path)
        lock = self.path / ".lock"
        if os.path.lexists(lock) and not lock.is_file():
            quarantine(lock, "is no file")
        with wrap_write_errors(lock):
            file = open(lock, "w")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _without_history(line: str) -> dict[str, Any]:
    """A result without its steps, which are most of its size."""
    record: dict[str, Any] = json.loads(line)
    record.pop("history", None)
    return record


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
