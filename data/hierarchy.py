"""ImageNet's classes and what they are kinds of, from WordNet: a table that is shipped."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("imagenet_hierarchy.csv")  # scripts/imagenet_hierarchy.py writes it
COMMENT = "#"
COLUMNS = ("index", "id", "name", "kinds")


@dataclass(frozen=True)
class Kind:
    """What pictures show. index: the class's number, None for what is no class but only stands above some;
    kinds: ids of what it is a kind of directly, mostly one, none for the root."""

    index: int | None
    name: str
    kinds: tuple[str, ...]


@cache
def read_kinds() -> Mapping[str, Kind]:
    """The table by WordNet id (`n01440764`), classes first and in the order of their numbers."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith(COMMENT))
        return {
            row["id"]: Kind(int(row["index"]) if row["index"] else None, row["name"], tuple(row["kinds"].split()))
            for row in rows
        }


@cache
def class_names() -> Mapping[str, str]:
    """The names of the 1000 classes by WordNet id, in the order of their numbers."""
    return {wnid: kind.name for wnid, kind in read_kinds().items() if kind.index is not None}
