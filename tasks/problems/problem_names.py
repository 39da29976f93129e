"""Names and seeds of problems: names are fit for files, and no two problems of a run share a name or a seed."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

MAX_SLUG_BYTES = 80  # bytes of a part of a name: with an image's name and a suffix it stays below a file system's 255


def problem_seed(seed: int, i: int, repeat: int = 0) -> int:
    """The seed of the i-th problem of a run and of its repetitions: no two are equal."""
    return seed * 1_000_003 + i + repeat * 1_000_000_007


def slug(name: str, among: Sequence[str] = ()) -> str:
    """A name fit for a file on every system: "a fiddler crab" -> "a-fiddler-crab"; letters and digits of any alphabet
    are kept. A digest is appended to a name that another one of `among` would share with it, ignoring letter case, to
    one without a letter, and to one that is cut since it is longer than `MAX_SLUG_BYTES` bytes."""
    plain = _hyphenated(name)
    is_shared = _slug_counts(tuple(among))[plain] - (name in among)
    if plain and not is_shared and len(plain.encode()) <= MAX_SLUG_BYTES:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain.encode()[: MAX_SLUG_BYTES - 9].decode(errors='ignore')}-{digest}".lstrip("-")


def _hyphenated(name: str) -> str:
    """Letters, their marks and digits in lower case, with hyphens for everything between."""
    letters = (c if unicodedata.category(c)[0] in "LMN" else " " for c in unicodedata.normalize("NFC", name.lower()))
    return "-".join("".join(letters).split())


@lru_cache(maxsize=16)
def _slug_counts(names: tuple[str, ...]) -> Counter[str]:
    """How many different names have the same slug."""
    return Counter(_hyphenated(name) for name in dict.fromkeys(names))
