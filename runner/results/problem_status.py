"""Outcomes of a run's problems, from their files; unchanged files are read once."""

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
    """The outcome of one problem: a result, a failure or damage. file, state: the file that was read;
    compressed_result: its line of results.jsonl, compressed, since a run holds those of all problems; failure: name and
    error; damage: the reason why the file is not valid."""

    file: str
    state: FileState
    compressed_result: bytes | None = None
    failure: Mapping[str, Any] | None = None
    damage: str | None = None


class Outcomes:
    """Outcomes of the problems of a run. folder: holds a folder per problem."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._held: dict[str, Outcome] = {}

    def update(self, names: Iterable[str]) -> None:
        """Read the files of these problems that are new or changed."""
        for name in names:
            if (current := self._current_file(name)) is None:
                self._held.pop(name, None)
            elif current != self._known_file(name):
                self._held[name] = self._read(name, *current)

    def lines(self, names: Iterable[str]) -> Iterator[str]:
        """The lines of results.jsonl of the solved problems."""
        held = (self._held.get(name) for name in names)
        return (
            zlib.decompress(one.compressed_result).decode()
            for one in held
            if one is not None and one.compressed_result is not None
        )

    def failures(self, names: Iterable[str]) -> list[Mapping[str, Any]]:
        """Name and error of the failed problems."""
        held = (self._held.get(name) for name in names)
        return [outcome.failure for outcome in held if outcome is not None and outcome.failure is not None]

    def damage(self, names: Iterable[str]) -> dict[Path, str]:
        """Damaged files with the reason of each."""
        held = ((name, self._held.get(name)) for name in names)
        return {Path(self._folder, name, one.file): one.damage for name, one in held if one and one.damage}

    def is_settled(self, name: str) -> bool:
        """Whether a problem is solved or failed."""
        held = self._held.get(name)
        return held is not None and (held.compressed_result is not None or held.failure is not None)

    def _current_file(self, name: str) -> tuple[str, FileState] | None:
        """The decisive file: a result, even if there is a failure too."""
        for file in (RESULT_FILE, FAILURE_FILE):
            if (state := file_state(f"{self._folder}/{name}/{file}")) is not None:
                return file, state
        return None

    def _known_file(self, name: str) -> tuple[str, FileState] | None:
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
