"""Reader of run folders: configuration, results and images. Damaged results are left out with a printed line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier_lens.runner.files.atomic import DamagedFileError, read, read_lines
from classifier_lens.runner.result_schema import ORIGINAL, START, ImageField, Record
from classifier_lens.runner.results.integrity import YAML_ERRORS, parse_line, parse_object, parse_yaml
from classifier_lens.runner.types import UserError, first_line

REWRITE_HINT = "the run's own command writes it again"
RUN_FOLDER_HINT = "give outputs/<task>/<generator>-<classifier>/<hash>"


def read_config(path: Path) -> Mapping[str, Any]:
    """The configuration in a run folder, empty if there is none. Raises UserError if it is no YAML of plain values."""
    try:
        config = parse_yaml(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except YAML_ERRORS as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    return {str(k): v for k, v in config.items()} if isinstance(config, dict) else {}


def read_object(path: Path) -> Mapping[str, Any]:
    """A JSON object of a run folder, empty if there is no file. Raises UserError for any other content."""
    try:
        return parse_object(read(path))
    except FileNotFoundError:
        return {}
    except DamagedFileError as error:
        raise UserError(f"{path}: {error}; {REWRITE_HINT}") from error


def read_results(path: Path) -> Iterator[Mapping[str, Any]]:
    """The results in a results.jsonl, none if there is no file; a damaged line is left out with a printed line. Raises
    UserError if the file cannot be read."""
    try:
        for i, line in enumerate(read_lines(path), start=1):
            if line.strip() and (record := _line(path, i, line)) is not None:
                yield record
    except FileNotFoundError:
        return
    except DamagedFileError as error:
        raise UserError(f"{path}: {error}; {REWRITE_HINT}") from error


def _line(path: Path, i: int, line: bytes) -> Mapping[str, Any] | None:
    """The result in a line; None, with a printed line, if it is damaged."""
    try:
        return parse_line(line)
    except DamagedFileError as error:
        print(f"{path}, line {i}: {error} and is left out; {REWRITE_HINT}", file=sys.stderr)
        return None


@dataclass(frozen=True)
class RunResults:
    """A run folder that was read. options: names of the run's task, generator, classifier and parametrization."""

    folder: Path
    options: Mapping[str, str]
    config: Mapping[str, Any]
    records: Sequence[Record]

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.options["task"]

    def image_path(self, record: Record, image: ImageField) -> Path:
        """The file of a record's image. Raises UserError if the record has no such image or the file is missing."""
        path = (record.get("images") or {}).get(image.key)
        if path is None:
            raise UserError(f"{self.folder}: {record['name']} has no image '{image.key}'; run the same command again")
        if not (self.folder / path).is_file():
            raise UserError(f"{self.folder / path}: the image is missing; copy the run folder as a whole")
        return self.folder / str(path)

    def start_image_path(self, record: Record) -> Path:
        """The file of the original or, of a generated image without one, of the initialization."""
        return self.image_path(record, ORIGINAL if ORIGINAL.key in record["images"] else START)

    def summary(self) -> Mapping[str, Any]:
        """The task's summary of all results. Raises UserError if the file is missing."""
        path = self.folder / "summary.json"
        if not path.is_file():
            raise UserError(f"{path}: is missing; run the same command again")
        return read_object(path)


def read_run(folder: Path) -> RunResults:
    """The configuration and the results of a run folder. Raises UserError if they are missing or cannot be read, and
    for a folder of an earlier version, whose results have other keys."""
    for name in ("config.yaml", "results.jsonl"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: is no run folder, {name} is missing; {RUN_FOLDER_HINT}")
    config = read_config(folder / "config.yaml")
    options = config.get("options")
    if not isinstance(options, Mapping) or not isinstance(options.get("task"), str):
        raise UserError(
            f"{folder / 'config.yaml'}: has no options.task, as in runs of an earlier version; run its command again "
            "with this version"
        )
    records = list(read_results(folder / "results.jsonl"))
    if not records:
        raise UserError(f"{folder}: holds no results yet; the same command continues the run")
    return RunResults(folder, options, config, records)


def group_by(records: Sequence[Record], *keys: str) -> list[list[Record]]:
    """Groups of records with equal values of all keys, in the order of their appearance."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    return list(groups.values())


def distinguishing_names(runs: Sequence[RunResults], method: str, *settings: Sequence[str]) -> list[str]:
    """A unique name for each run: the first that is unique among the classifiers, the baselines (`method` for none),
    the given settings and the hashes."""
    classifiers = [run.options["classifier"] for run in runs]
    baselines = [run.config["task"]["baseline"] for run in runs]
    methods = [method if name == "none" else name.replace("_", " ") for name in baselines]
    unique = (names for names in (classifiers, methods, *settings) if len(set(names)) == len(runs))
    return list(next(unique, [run.folder.resolve().name for run in runs]))
