"""What became of a run's problems, by their own files, each of which is read once as long as it stays the same."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier_lens.runner.files.atomic import UNREADABLE_ERRORS, DamagedFileError, read
from classifier_lens.runner.results.integrity import FAILURE_FILE, RESULT_FILE, parse_failure, parse_result

FileState = tuple[int, int, int, int]  # of a file: changes whenever it is written or replaced


def file_state(path: str) -> FileState | None:
    """A file's number, size and times of change, None where there is none."""
    try:
        stat = os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, *UNREADABLE_ERRORS):
            return None
        raise
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@dataclass(frozen=True)
class Outcome:
    """Of one problem, one of the last three. file, state: what was read; compressed_result: its result, as
    results.jsonl has it, compressed, since a run holds those of all its problems; failure: its name and error; damage:
    why the file is not what was written."""

    file: str
    state: FileState
    compressed_result: bytes | None = None
    failure: Mapping[str, Any] | None = None
    damage: str | None = None


class Outcomes:
    """What became of the problems of a run. folder: that holds a folder for each."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._held: dict[str, Outcome] = {}

    def update(self, names: Iterable[str]) -> None:
        """Look at these problems' files, and read those that are new or changed."""
        for name in names:
            if (found := self._found(name)) is None:
                self._held.pop(name, None)
            elif found != self._known(name):
                self._held[name] = self._read(name, *found)

    def lines(self, names: Iterable[str]) -> Iterator[str]:
        """The results of those that are solved."""
        held = (self._held.get(name) for name in names)
        return (
            zlib.decompress(one.compressed_result).decode()
            for one in held
            if one is not None and one.compressed_result is not None
        )

    def failures(self, names: Iterable[str]) -> list[Mapping[str, Any]]:
        """Of those that failed."""
        held = (self._held.get(name) for name in names)
        return [outcome.failure for outcome in held if outcome is not None and outcome.failure is not None]

    def damage(self, names: Iterable[str]) -> dict[Path, str]:
        """The files that cannot be trusted, and why."""
        held = ((name, self._held.get(name)) for name in names)
        return {Path(self._folder, name, one.file): one.damage for name, one in held if one and one.damage}

    def is_settled(self, name: str) -> bool:
        """Whether a problem is solved or failed."""
        held = self._held.get(name)
        return held is not None and (held.compressed_result is not None or held.failure is not None)

    def _found(self, name: str) -> tuple[str, FileState] | None:
        """The file that counts: a result, also beside a failure."""
        for file in (RESULT_FILE, FAILURE_FILE):
            if (state := file_state(f"{self._folder}/{name}/{file}")) is not None:
                return file, state
        return None

    def _known(self, name: str) -> tuple[str, FileState] | None:
        held = self._held.get(name)
        return None if held is None else (held.file, held.state)

    def _read(self, name: str, file: str, state: FileState) -> Outcome:
        parse: Callable[[bytes, str], dict[str, Any]] = parse_result if file == RESULT_FILE else parse_failure
        try:
            record = parse(read(Path(self._folder, name, file)), name)
        except (FileNotFoundError, DamagedFileError) as error:
            return Outcome(file, state, damage=str(error))
        if file == FAILURE_FILE:
            return Outcome(file, state, failure={"name": record["name"], "error": record["error"]})
        return Outcome(
            file, state, compressed_result=zlib.compress(json.dumps(record, allow_nan=False).encode(), level=1)
        )
