"""A run folder, read: its configuration and its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.report import read_config, read_object, read_results
from runner.types import UserError

Record = Mapping[str, Any]  # a line of results.jsonl

WANTED = "give outputs/<task>/<generator>-<classifier>/<hash>"


@dataclass(frozen=True)
class Run:
    """A run folder, read: `task` is the module of the task that made it."""

    folder: Path
    task: str
    config: Mapping[str, Any]
    records: Sequence[Record]

    def picture(self, record: Record, key: str) -> Path:
        """A record's picture. Raises UserError if it has none of this name or the file is gone."""
        path = (record.get("images") or {}).get(key)
        if path is None:
            raise UserError(f"{self.folder}: {record['name']} has no picture '{key}'; run the same command again")
        if not (self.folder / path).is_file():
            raise UserError(f"{self.folder / path}: the picture is missing; was the run folder moved without it?")
        return self.folder / str(path)

    def start(self, record: Record) -> Path:
        """What a problem began with: its original, or the picture that was drawn."""
        return self.picture(record, "original" if "original" in record["images"] else "start")

    def summary(self) -> Mapping[str, Any]:
        """What the task says of all answers together. Raises UserError if the file is gone."""
        path = self.folder / "summary.json"
        if not path.is_file():
            raise UserError(f"{path}: is missing; run the same command again")
        return read_object(path)


def read_run(folder: Path) -> Run:
    """A run folder's configuration and results; a damaged result is left out, and told. Raises UserError if they are
    not there or cannot be read."""
    for name in ("config.yaml", "results.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no run folder, {name} is missing; {WANTED}")
    config = read_config(folder / "config.yaml")
    task = config["task"].get("_target_") if isinstance(config.get("task"), Mapping) else None
    if not isinstance(task, str) or "." not in task:
        raise UserError(f"{folder / 'config.yaml'}: names no task; {WANTED}")
    records = list(read_results(folder / "results.jsonl"))
    if not records:
        raise UserError(f"{folder}: holds no results yet; the same command continues the run")
    return Run(folder, task.split(".")[-2], config, records)


def groups(records: Sequence[Record], *keys: str) -> list[list[Record]]:
    """Records that agree in all of the keys, in the order of their appearance."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in keys), []).append(record)
    return list(found.values())


def told_apart(runs: Sequence[Run], method: str, *settings: Sequence[str]) -> list[str]:
    """A name for each run, by what tells runs apart: their classifiers, their baselines (`method` is the one without),
    other settings of theirs or, where none does, their hashes."""
    classifiers = [run.folder.resolve().parent.name.partition("-")[2] for run in runs]
    baselines = [run.config["task"]["baseline"] for run in runs]
    named = [method if name == "none" else name.replace("_", " ") for name in baselines]
    own = (labels for labels in (classifiers, named, *settings) if len(set(labels)) == len(runs))
    return list(next(own, [run.folder.resolve().name for run in runs]))
