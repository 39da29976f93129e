"""Names of batches, which consist of the positions of their problems."""

from __future__ import annotations

import re

BATCH_NAME = re.compile("problems-([0-9]{5,9})-([0-9]{5,9})")


def batch_name(start: int, count: int) -> str:
    """The name of a batch by the positions of its problems."""
    return f"problems-{start:05d}-{start + count:05d}"


def batch_span(name: str) -> range:
    """The positions of a batch's problems, none where a name is no batch's: a folder may hold what others left there,
    such as a file manager's notes or an editor's copies."""
    found = BATCH_NAME.fullmatch(name)
    return range(int(found[1]), int(found[2])) if found else range(0)


def batches_overlap(one: str, other: str) -> bool:
    """Whether two batches share a problem: they were cut for different limits then, or in different sizes."""
    a, b = batch_span(one), batch_span(other)
    return max(a.start, b.start) < min(a.stop, b.stop)
