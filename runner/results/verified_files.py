"""Which problems' files were read and found to be what was written: they are not read again while the file system tells
that they are the same.

It tells so by numbers, sizes and times of the files, one of which no program can set: that of the last change. What a
process has just written is not believed by that alone: it is read by the next start.
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
    """The states in which a run folder's problems were found whole, by name; none where nobody noted any that can be
    trusted."""
    try:
        noted = parse_with_digest(read(folder / VERIFIED_FILE)).get("states")
    except (FileNotFoundError, DamagedFileError):
        return {}
    return dict(noted) if isinstance(noted, dict) else {}


def save(folder: Path, states: Mapping[str, str]) -> None:
    """Note them. Raises UnwritableError."""
    write_atomic(folder / VERIFIED_FILE, json.dumps(add_digest({"states": dict(states)})))


def verify(
    folder: Path, places: Sequence[Path], known: Mapping[str, str]
) -> tuple[dict[Path, str], dict[str, str]]:  # fmt: skip
    """What is to be set aside of these problems' folders within a run folder, and why; and the states of the others, by
    name, where they can be noted. What is done is read whole, unless it is in a known state."""
    parts = [places[i : i + PROBLEMS_PER_TASK] for i in range(0, len(places), PROBLEMS_PER_TASK)]
    damaged: dict[Path, str] = {}
    whole: dict[str, str] = {}
    with ThreadPoolExecutor(READER_THREADS, "reader") as readers:
        for part in readers.map(lambda part: [_examined(folder, place, known) for place in part], parts):
            for name, state, found in part:
                damaged |= found
                if state is not None and not found:
                    whole[name] = state
    return damaged, whole


def _examined(folder: Path, place: Path, known: Mapping[str, str]) -> tuple[str, str | None, dict[Path, str]]:
    """Of one problem: its name, the state of its files before they are read, and what is damaged."""
    state = _state(place)
    found = {} if state is not None and state == known.get(place.name) else dict(find_damage(folder, place))
    return place.name, state, found


def _state(place: Path) -> str | None:
    """What the file system says of a problem's files, as a digest; None where there are none, where something is no
    file, and where something has changed a moment ago."""
    found = []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                stat = entry.stat(follow_symlinks=False)
                if not entry.is_file(follow_symlinks=False) or stat.st_ctime_ns > time.time_ns() - MIN_AGE_NS:
                    return None
                found.append((entry.name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    except OSError:  # what it is, is told when it is read
        return None
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()[:DIGEST_LENGTH] if found else None
