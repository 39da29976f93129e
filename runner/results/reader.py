"""A run folder, read: its configuration and its results; what is damaged in it is left out, and told, or refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier_lens.runner.files.atomic import DamagedFileError, read, read_lines
from classifier_lens.runner.results.integrity import YAML_ERRORS, parse_line, parse_object, parse_yaml
from classifier_lens.runner.types import UserError, first_line

Record = Mapping[str, Any]  # a line of results.jsonl

REWRITE_HINT = "the run's own command writes it anew"
RUN_FOLDER_HINT = "give outputs/<task>/<generator>-<classifier>/<hash>"


def read_config(path: Path) -> Mapping[str, Any]:
    """The configuration that a run's folder holds, empty where it has none. Raises UserError if it is no YAML, or if it
    asks for more than plain values."""
    try:
        config = parse_yaml(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except YAML_ERRORS as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    return {str(k): v for k, v in config.items()} if isinstance(config, dict) else {}


def read_object(path: Path) -> Mapping[str, Any]:
    """A JSON object of a run's folder, empty where there is no file. Raises UserError for any other content."""
    try:
        return parse_object(read(path))
    except FileNotFoundError:
        return {}
    except DamagedFileError as error:
        raise UserError(f"{path}: {error}; {REWRITE_HINT}") from error


def read_results(path: Path) -> Iterator[Mapping[str, Any]]:
    """The finished problems of a run, none where there is no file; a damaged line is left out, and told. Raises
    UserError where the file as a whole cannot be read."""
    try:
        for i, line in enumerate(read_lines(path), start=1):
            if line.strip() and (record := _line(path, i, line)) is not None:
                yield record
    except FileNotFoundError:
        return
    except DamagedFileError as error:
        raise UserError(f"{path}: {error}; {REWRITE_HINT}") from error


def _line(path: Path, i: int, line: bytes) -> Mapping[str, Any] | None:
    """The result in a line, None, and told, where it is damaged."""
    try:
        return parse_line(line)
    except DamagedFileError as error:
        print(f"{path}, line {i}: {error}; left out, {REWRITE_HINT}", file=sys.stderr)
        return None


@dataclass(frozen=True)
class RunResults:
    """A run folder, read: `task` is the module of the task that made it."""

    folder: Path
    task: str
    config: Mapping[str, Any]
    records: Sequence[Record]

    def image_path(self, record: Record, key: str) -> Path:
        """A record's picture. Raises UserError if it has none of this name or the file is gone."""
        path = (record.get("images") or {}).get(key)
        if path is None:
            raise UserError(f"{self.folder}: {record['name']} has no picture '{key}'; run the same command again")
        if not (self.folder / path).is_file():
            raise UserError(f"{self.folder / path}: the picture is missing; was the run folder moved without it?")
        return self.folder / str(path)

    def start_image_path(self, record: Record) -> Path:
        """What a problem began with: its original, or the picture that was drawn."""
        return self.image_path(record, "original" if "original" in record["images"] else "start")

    def summary(self) -> Mapping[str, Any]:
        """What the task says of all answers together. Raises UserError if the file is gone."""
        path = self.folder / "summary.json"
        if not path.is_file():
            raise UserError(f"{path}: is missing; run the same command again")
        return read_object(path)


def read_run(folder: Path) -> RunResults:
    """A run folder's configuration and results; a damaged result is left out, and told. Raises UserError if they are
    not there or cannot be read."""
    for name in ("config.yaml", "results.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no run folder, {name} is missing; {RUN_FOLDER_HINT}")
    config = read_config(folder / "config.yaml")
    task = config["task"].get("_target_") if isinstance(config.get("task"), Mapping) else None
    if not isinstance(task, str) or "." not in task:
        raise UserError(f"{folder / 'config.yaml'}: names no task; {RUN_FOLDER_HINT}")
    records = list(read_results(folder / "results.jsonl"))
    if not records:
        raise UserError(f"{folder}: holds no results yet; the same command continues the run")
    return RunResults(folder, task.split(".")[-2], config, records)


def group_by(records: Sequence[Record], *keys: str) -> list[list[Record]]:
    """Records that agree in all of the keys, in the order of their appearance."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in keys), []).append(record)
    return list(found.values())


def distinguishing_names(runs: Sequence[RunResults], method: str, *settings: Sequence[str]) -> list[str]:
    """A name for each run, by what tells runs apart: their classifiers, their baselines (`method` is the one without),
    other settings of theirs or, where none does, their hashes."""
    classifiers = [run.folder.resolve().parent.name.partition("-")[2] for run in runs]
    baselines = [run.config["task"]["baseline"] for run in runs]
    named = [method if name == "none" else name.replace("_", " ") for name in baselines]
    own = (labels for labels in (classifiers, named, *settings) if len(set(labels)) == len(runs))
    return list(next(own, [run.folder.resolve().name for run in runs]))
