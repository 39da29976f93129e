"""Problems whose files were verified: they are not read again while the file system reports no change.

Inode numbers, sizes and times of the files are compared; no program can set the time of the last change. Files that
were written a moment ago are verified by the next start.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from classifier_lens.runner.files.atomic import DamagedFileError, read, write_atomic
from classifier_lens.runner.results.integrity import DIGEST_LENGTH, add_digest, find_damage, parse_with_digest

VERIFIED_FILE = "verified.json"
MIN_AGE_NS = (
    2_000_000_000  # ns; a file that changes again so soon may keep its times, which some systems count in seconds
)
READER_THREADS, PROBLEMS_PER_TASK = 8, 50  # threads, and problems that each takes at once


def load(folder: Path) -> dict[str, str]:
    """The file states in which the problems of a run folder were verified, by name; empty without a valid record."""
    try:
        states = parse_with_digest(read(folder / VERIFIED_FILE)).get("states")
    except (FileNotFoundError, DamagedFileError):
        return {}
    return dict(states) if isinstance(states, dict) else {}


def save(folder: Path, states: Mapping[str, str]) -> None:
    """Write them. Raises UnwritableError."""
    write_atomic(folder / VERIFIED_FILE, json.dumps(add_digest({"states": dict(states)})))


def verify(
    folder: Path, places: Sequence[Path], known: Mapping[str, str]
) -> tuple[dict[Path, str], dict[str, str]]:  # fmt: skip
    """Damaged files of these problem folders with the reason of each, and the states of the intact problems by name, if
    they can be recorded. Files are read in full, unless they are in a known state."""
    parts = [places[i : i + PROBLEMS_PER_TASK] for i in range(0, len(places), PROBLEMS_PER_TASK)]
    damaged: dict[Path, str] = {}
    intact: dict[str, str] = {}
    with ThreadPoolExecutor(READER_THREADS, "reader") as readers:
        for part in readers.map(lambda part: [_examined(folder, place, known) for place in part], parts):
            for name, state, damage in part:
                damaged |= damage
                if state is not None and not damage:
                    intact[name] = state
    return damaged, intact


def _examined(folder: Path, place: Path, known: Mapping[str, str]) -> tuple[str, str | None, dict[Path, str]]:
    """Of one problem: its name, the state of its files before they are read, and the damage."""
    state = _state(place)
    damage = {} if state is not None and state == known.get(place.name) else dict(find_damage(folder, place))
    return place.name, state, damage


def _state(place: Path) -> str | None:
    """A digest of what the file system reports about a problem's files; None without files, with anything that is no
    file, and if something changed a moment ago."""
    states = []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                stat = entry.stat(follow_symlinks=False)
                if not entry.is_file(follow_symlinks=False) or stat.st_ctime_ns > time.time_ns() - MIN_AGE_NS:
                    return None
                states.append((entry.name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    except OSError:  # reading the files reports the reason
        return None
    return hashlib.sha256(repr(sorted(states)).encode()).hexdigest()[:DIGEST_LENGTH] if states else None
