"""What a run leaves behind: a folder per problem, results.jsonl, status.json; a file appears whole or not at all."""

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

# What the results follow from: two commands that agree in it continue the same run. Everything else in a configuration
# is either referred to by these or changes no result.
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
# Where a part computes and what it keeps follow from `device` and `outputs`; which weights it reads is told by hashes.
LOCATION_SETTINGS = ("device", "cache", "variant")

LEASE_FOLDER = "leases"
SUBFOLDERS = ("images", "state", LEASE_FOLDER, "attempts")  # of a run folder
# Of the keys in result.json: results of another format are never continued, since their run has another key.
RESULT_FORMAT = 2

Summarize = Callable[[Sequence[Record]], Record]


def run_key(config: Mapping[str, Any], digests: Sequence[str]) -> str:
    """Ten letters that follow from the resolved configuration, what the files hold that it names, and the digests of
    the parts. What its problems follow from is told by the run's manifest."""
    settings = _settings(config)
    text = json.dumps([RESULT_FORMAT, settings, list(digests), file_digests(settings)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What results follow from."""
    return {key: _without_places(config[key]) for key in RUN_KEY_SETTINGS if key in config}


def _without_places(value: Any) -> Any:
    """A part's settings without those of `LOCATION_SETTINGS`, at any depth, and folders in one way of writing them."""
    if isinstance(value, Mapping):
        return {k: _without_places(v) for k, v in value.items() if k not in LOCATION_SETTINGS}
    if isinstance(value, str) and os.path.isdir(os.path.expanduser(value)):
        return os.path.normpath(value)  # completion leaves a slash behind
    return [_without_places(v) for v in value] if isinstance(value, (list, tuple)) else value


def quantize_8bit(picture: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """The image with the rounding of an 8-bit file, in [0, 1]."""
    return (picture.detach().float().clamp(0, 1) * 255).round() / 255


def write_png(path: Path, picture: Float[Tensor, "c h w"]) -> None:
    """Save an image in [0, 1] of one or three channels with 8 bits. The next durable write to its folder also makes its
    name durable."""
    pixels = (quantize_8bit(picture) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def read_png(path: Path) -> Float[Tensor, "3 h w"]:
    """A saved image in [0, 1]."""
    with Image.open(path, formats=["PNG"]) as file:
        return torch.from_numpy(np.asarray(file.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def check_finite(value: Any, name: str = "") -> None:
    """Raises NonFiniteError for a number at any depth of mappings and sequences that is not finite, and names it. What
    is undefined by design is None."""
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
        """The state of an unfinished batch."""
        return self.path / "state" / f"{batch}.safetensors"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """The resolved configuration; the first command that made the run stays in it."""
        if not self.has_settings(config):
            write_durable(self.path / "config.yaml", _as_yaml(config))

    def is_finished(self, config: Mapping[str, Any]) -> bool:
        """Whether a run of the same settings says here that it is done."""
        try:
            status = parse_object(read(self.path / "status.json"))
        except (FileNotFoundError, DamagedFileError):
            return False
        return status.get("state") == "done" and self.has_settings(config)

    def has_settings(self, config: Mapping[str, Any]) -> bool:
        """Whether the folder's configuration can be read and its results follow from the same settings."""
        try:
            held = parse_config(read(self.path / "config.yaml"))
        except (FileNotFoundError, DamagedFileError):
            return False
        return _settings(held) == _settings(parse_config(_as_yaml(config).encode()))

    def problem_names(self) -> list[str]:
        """The names of all problems of the run so far, in their order."""
        return (try_read_text(self.path / "problems.txt") or "").splitlines()

    def stored_manifest(self) -> Manifest | None:
        """The stored manifest, with all problems of the run so far; None if there is none that can be read."""
        try:
            return Manifest.from_json(read(self.path / "manifest.json"))
        except (FileNotFoundError, DamagedFileError):
            return None

    def check_manifest(self, manifest: Manifest) -> None:
        """Raise UserError if the run began with other problems or classifiers."""
        if (begun := self.stored_manifest()) is not None:
            manifest.check_compatible(begun, self.path)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest and the names of the problems; one with fewer problems changes nothing. Raises as
        `check_manifest` does."""
        path, names = self.path / "manifest.json", self.path / "problems.txt"
        with self._writer():
            self.check_manifest(manifest)
            begun = self.stored_manifest()
            if begun is None and os.path.lexists(path):
                quarantine(path, "is no manifest")
            if begun is None or len(begun.problems) < len(manifest.problems):
                begun = manifest
                write_durable(path, manifest.to_json())
            if self.problem_names() != (known := list(begun.problems)):
                write_durable(names, "".join(f"{name}\n" for name in known))

    def stored_batch_size(self) -> int | None:
        """How many problems a batch has, where the first process chose it by its memory."""
        text = (try_read_text(self.path / "batch") or "").strip()
        return int(text) if re.fullmatch("[1-9][0-9]{0,5}", text) else None

    def store_batch_size(self, chosen: int) -> int:
        """Note it; returns what another process may have noted before."""
        with self._writer():
            if (noted := self.stored_batch_size()) is None:
                write_durable(self.path / "batch", f"{chosen}\n")
        return noted or chosen

    def write_attempt(
        self, process: Process, started_at: float, state: str, reason: str, preparation_seconds: float = 0.0
    ) -> None:  # fmt: skip
        """That a process works at the run, or how it ended; a process may do so more than once. preparation_seconds:
        seconds that it took to load and to prepare the problems."""
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
        """Rename damaged files, a line each, so that their problems are solved again. Intact files are recorded and not
        read again while they are unchanged. Raises UnwritableError."""
        damaged, whole = self._examined(names)
        for path in sorted(damaged):  # a folder before what is in it: a link leads to others' files
            quarantine(path, damaged[path])
        if whole:
            with self._writer():
                if (noted := verified_files.load(self.path)) != (together := noted | whole):
                    verified_files.save(self.path, together)

    def find_damage(self, names: Sequence[str]) -> dict[Path, str]:
        """What is not what was written, and in what way."""
        return self._examined(names)[0]

    def _examined(self, names: Sequence[str]) -> tuple[dict[Path, str], dict[str, str]]:
        """The damage, and the states of the problems that are whole."""
        folders = (self.path, *(self.path / part for part in SUBFOLDERS))
        found = {path: "is no folder" for path in folders if os.path.lexists(path) and not path.is_dir()}
        places = [self.problem_folder(name) for name in names]
        damaged, whole = verified_files.verify(self.path, places, verified_files.load(self.path))
        self._outcomes.update(names)
        return found | self._outcomes.damage(names) | damaged, whole

    def is_unused(self, process: Process) -> bool:
        """Whether nothing lies here that a run could go on from, and no other process ever worked here."""
        own = f"-{process.name}.json"
        attempts = [path.name for path in self.path.glob("attempts/*")]
        answered = [*self.path.glob("images/*/result.json"), *self.path.glob("images/*/failure.json")]
        return all(name.endswith(own) for name in attempts) and not [*answered, *self.path.glob("state/*")]

    def remove(self) -> None:
        """Remove the folder, and those above it that tell its task and its parts, if they are empty then."""
        shutil.rmtree(self.path, ignore_errors=True)
        for above in self.path.parents[:2]:
            with suppress(OSError):
                above.rmdir()

    def is_done(self, name: str) -> bool:
        return any((self.problem_folder(name) / file).exists() for file in (RESULT_FILE, FAILURE_FILE))

    def results(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Of those problems that are solved."""
        self._outcomes.update(names)
        return [json.loads(line) for line in self._outcomes.lines(names)]

    def failures(self, names: Sequence[str]) -> list[Mapping[str, Any]]:
        """Of those problems that failed: name and error."""
        self._outcomes.update(names)
        return self._outcomes.failures(names)

    def write_result(self, name: str, record: Mapping[str, Any]) -> None:
        """Write what was found, once the files that it names are written. Raises NonFiniteError."""
        check_finite(record)
        whole = add_file_digests(self.path, record)
        write_durable(self.problem_folder(name) / RESULT_FILE, json.dumps(whole, indent=1, allow_nan=False))

    def write_failure(self, name: str, error: str, traceback: str | None = None, process_name: str = "") -> None:
        """Write why a problem failed; traceback: of what was raised, None where a result was no number; process_name:
        the name of the process that met it."""
        raised = {} if traceback is None else {"traceback": traceback, "process": process_name}
        write_durable(self.problem_folder(name) / FAILURE_FILE, json.dumps({"name": name, "error": error, **raised}))

    def clear_failures(self, names: Sequence[str], at_work: Callable[[str], bool]) -> None:
        """Forget the failures that were raised as errors: what raised them may have been put right since then. Those of
        a process that is still at work stay, by its name: whoever joins it would fail as it did."""
        for name in names:
            with suppress(FileNotFoundError, DamagedFileError):
                failure = parse_failure(read(self.problem_folder(name) / FAILURE_FILE), name)
                if "traceback" in failure and not at_work(str(failure.get("process", ""))):
                    remove(self.problem_folder(name) / FAILURE_FILE)

    def remove_checkpoints(self, batch: str) -> None:
        """Remove the states of a batch that is done, and of its parts."""
        span = batch_span(batch)
        for path in (self.path / "state").glob("problems-*-*.safetensors"):
            part = batch_span(path.stem)
            if part and span.start <= part.start and part.stop <= span.stop and not path.is_dir():
                remove(path)

    def collect(self, names: Sequence[str], state: str, reason: str, summarise: Summarize) -> dict[str, Any]:
        """Rebuild results.jsonl in problem order, summary.json and status.json from the problems' own files, of which
        those are read that are new; returns the status.

        Finished problems of earlier commands remain; only `names` can be pending.
        """
        self._outcomes.update(self._every(names))  # not while others wait
        with self._writer():
            every = self._every(names)
            self._outcomes.update(name for name in every if not self._outcomes.is_settled(name))
            write_atomic(self.path / "results.jsonl", (f"{line}\n" for line in self._outcomes.lines(every)))
            results = [_without_history(line) for line in self._outcomes.lines(every)]
            failures = self._outcomes.failures(every)
            pending = sum(not self._outcomes.is_settled(name) for name in names)
            if state == "done" and pending:  # other processes work at what is left
                state = "pending"
            status = {
                "state": state, "done": len(results), "failed": len(failures), "pending": pending, "reason": reason,
                "failures": failures,
            }  # fmt: skip
            write_atomic(self.path / "status.json", json.dumps(status, indent=1))
            write_atomic(self.path / "summary.json", json.dumps(summarise(results), indent=1, allow_nan=False))
        return status

    def _every(self, names: Sequence[str]) -> Sequence[str]:
        """These problems, or all of the run so far if these are more."""
        return known if len(known := self.problem_names()) > len(names) else names

    @contextmanager
    def _writer(self) -> Iterator[None]:
        """One writer at a time, across processes."""
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
    """A result without its steps, most of what it holds."""
    record: dict[str, Any] = json.loads(line)
    record.pop("history", None)
    return record


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
