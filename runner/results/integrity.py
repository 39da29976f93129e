"""Integrity of the files of a problem: a result holds the digests of its files and of itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from classifier_lens.runner.files.atomic import DamagedFileError, read

DIGEST_LENGTH = 16  # hexadecimal places of a digest: it detects damage, not an adversary
RESULT_FILE, FAILURE_FILE = "result.json", "failure.json"

# Errors of reading an invalid configuration: numbers of thousands of digits and other encodings raise ValueError, lists
# may be nested too deeply.
YAML_ERRORS = (yaml.YAMLError, ValueError, OSError, RecursionError)

Confidences = dict[str, float | None]


class ResultLine(BaseModel):
    """The values of a result that readers rely on; tasks add others."""

    name: str
    images: dict[str, str] = {}
    history: list[dict[str, Any]] = []
    loss: float | Confidences | None = None
    warnings: list[str] = []
    confidence_before: Confidences | None = None
    confidence_start: Confidences | None = None
    confidence_after: Confidences | None = None


class ProblemResult(ResultLine):
    """A problem's result.json, with the digests of the files that belong to it, by path in the run folder."""

    file_digests: dict[str, str]


def add_file_digests(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the digests of its files and one of itself."""
    files = [*record.get("images", {}).values(), *([record["controls_file"]] if "controls_file" in record else [])]
    digests = {path: _digest((folder / path).read_bytes()) for path in files}
    return add_digest({**record, "file_digests": digests})


def add_digest(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record, as it will be read from JSON, with its digest."""
    whole = json.loads(json.dumps(record))
    return {**whole, "digest": _of_record(whole)}


def parse_with_digest(data: bytes) -> dict[str, Any]:
    """A record without its digest. Raises DamagedFileError if it was changed."""
    record = parse_object(data)
    if record.pop("digest", None) != _of_record(record):
        raise DamagedFileError("was changed")
    return record


def parse_result(data: bytes, name: str) -> dict[str, Any]:
    """A problem's result from the content of its file. Raises DamagedFileError if it was changed."""
    record = parse_object(data)
    if record.get("name") != name or record.get("digest") != _of_record(record):
        raise DamagedFileError("was changed")
    _check(ProblemResult, record)
    return record


def parse_line(data: bytes) -> dict[str, Any]:
    """A line of results.jsonl. Raises DamagedFileError if it is no result or was changed."""
    record = parse_object(data)
    _check(ResultLine, record)
    if "digest" in record and record["digest"] != _of_record(record):
        raise DamagedFileError("was changed")
    return record


def _check(kind: type[ResultLine], record: Mapping[str, Any]) -> None:
    """Raises DamagedFileError if a record does not have this form."""
    try:
        kind.model_validate(record, strict=True)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise DamagedFileError(f"is no result ({key}: {error.errors()[0]['msg']})") from error


def parse_failure(data: bytes, name: str) -> dict[str, Any]:
    """The failure of a problem from the content of its file. Raises DamagedFileError if it was changed."""
    record = parse_object(data)
    if record.get("name") != name or not isinstance(record.get("error"), str):
        raise DamagedFileError("was changed")
    return record


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises DamagedFileError for anything else."""
    if not data.strip():
        raise DamagedFileError("is empty")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError("is not JSON") from error
    if not isinstance(value, dict):
        raise DamagedFileError("is not a JSON object")
    return value


class _Loader(yaml.SafeLoader):
    """YAML of plain values without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            raise yaml.constructor.ConstructorError(None, None, "a key occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The content of a YAML text; references to other keys remain texts. Raises one of `YAML_ERRORS` for invalid
    YAML."""
    return yaml.load(text, Loader=_Loader)


def parse_config(data: bytes) -> dict[str, Any]:
    """A run's configuration from the content of its file. Raises DamagedFileError for anything else."""
    try:
        value = parse_yaml(data.decode())
    except YAML_ERRORS as error:
        raise DamagedFileError("is no configuration") from error
    if not isinstance(value, dict):
        raise DamagedFileError("is no configuration")
    return {str(key): part for key, part in value.items()}


def find_damage(folder: Path, place: Path) -> Iterator[tuple[Path, str]]:
    """Damaged files of a problem's folder, with the reason of each. All files of a result are read in full."""
    if place.is_symlink() or (
        os.path.lexists(place) and not place.is_dir()
    ):  # a link may point to another problem's folder
        yield place, "is no folder"
        return
    for file, check in ((RESULT_FILE, _check_result), (FAILURE_FILE, _check_failure)):
        try:
            check(folder, place)
        except FileNotFoundError:
            continue
        except DamagedFileError as error:
            yield place / file, str(error)


def _check_failure(folder: Path, place: Path) -> None:
    parse_failure(read(place / FAILURE_FILE), place.name)


def _check_result(folder: Path, place: Path) -> None:
    """Raises FileNotFoundError without a result, DamagedFileError if the result or one of its files was changed."""
    record = parse_result(read(place / RESULT_FILE), place.name)
    for path, digest in record["file_digests"].items():
        try:
            same = _digest(read(folder / path)) == digest
        except FileNotFoundError as error:
            raise DamagedFileError(f"{path} is missing") from error
        except DamagedFileError as error:
            raise DamagedFileError(f"{path} {error}") from error
        if not same:
            raise DamagedFileError(f"{path} was changed")


def _of_record(record: Mapping[str, Any]) -> str:
    """The digest of a record, without its own digest and its seconds, in which equal runs differ."""
    values = {key: value for key, value in record.items() if key not in ("digest", "seconds")}
    return _digest(json.dumps(values, sort_keys=True).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGEST_LENGTH]
