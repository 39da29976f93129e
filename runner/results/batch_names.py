"""Names of batches, by the positions of their problems."""

from __future__ import annotations

import re

BATCH_NAME = re.compile("problems-([0-9]{5,9})-([0-9]{5,9})")


def batch_name(start: int, count: int) -> str:
    """The name of a batch by the positions of its problems."""
    return f"problems-{start:05d}-{start + count:05d}"


def batch_span(name: str) -> range:
    """The positions of a batch's problems, none for other names: a folder may hold foreign files, such as a file
    manager's notes or an editor's copies."""
    match = BATCH_NAME.fullmatch(name)
    return range(int(match[1]), int(match[2])) if match else range(0)


def batches_overlap(one: str, other: str) -> bool:
    """Whether two batches share a problem, as batches of different sizes or limits do."""
    a, b = batch_span(one), batch_span(other)
    return max(a.start, b.start) < min(a.stop, b.stop)
