"""ImageNet's classes and what they are kinds of, from WordNet: a table that is shipped."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HIERARCHY_FILE = Path(__file__).with_name("imagenet_hierarchy.csv")  # scripts/tables/imagenet_hierarchy.py writes it
COMMENT = "#"
ROOT_WNID = "n00001740"  # entity: everything is a kind of it
COLUMNS = ("index", "id", "name", "kinds")


@dataclass(frozen=True)
class Synset:
    """What pictures show. index: the class's number, None for what is no class but only stands above some;
    hypernyms: ids of what it is a kind of directly, mostly one, none for the root."""

    index: int | None
    name: str
    hypernyms: tuple[str, ...]


@cache
def read_synsets() -> Mapping[str, Synset]:
    """The table by WordNet id (`n01440764`), classes first and in the order of their numbers."""
    with HIERARCHY_FILE.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith(COMMENT))
        return {
            row["id"]: Synset(int(row["index"]) if row["index"] else None, row["name"], tuple(row["kinds"].split()))
            for row in rows
        }


@cache
def class_names() -> Mapping[str, str]:
    """The names of the 1000 classes by WordNet id, in the order of their numbers."""
    return {wnid: kind.name for wnid, kind in read_synsets().items() if kind.index is not None}


def hypernym_distances(wnid: str) -> dict[str, int]:
    """Everything that `wnid` is a kind of, itself with 0 steps, and the fewest steps up to each."""
    steps, level, kinds = {wnid: 0}, [wnid], read_synsets()
    while level:
        above = {kind for one in level for kind in kinds[one].hypernyms if kind not in steps}
        steps |= dict.fromkeys(above, steps[level[0]] + 1)
        level = sorted(above)
    return steps


@cache
def _below() -> Mapping[str, Mapping[str, int]]:
    """By id: the classes below it, and the fewest steps down to each."""
    found: dict[str, dict[str, int]] = {}
    for wnid in class_names():
        for above, steps in hypernym_distances(wnid).items():
            found.setdefault(above, {})[wnid] = steps
    return found


@cache
def _meeting(name: str) -> tuple[str, str] | None:
    """The nearest other class and the kind under which both meet, by id; None for a name that no class has."""
    wnid = next((wnid for wnid, own in class_names().items() if own.lower() == name.lower()), None)
    if wnid is None:
        return None
    ways = [
        (up + down, -hypernym_distances(kind)[ROOT_WNID], read_synsets()[other].index, other, kind)
        for kind, up in hypernym_distances(wnid).items() for other, down in _below()[kind].items() if other != wnid
    ]  # fmt: skip
    return min(ways)[-2:]


def nearest(name: str) -> str | None:
    """The class at the fewest steps, up to a common kind and down again; of several the one whose common kind lies
    deepest, then the one with the smallest number. None for a name that no class has; letter case aside."""
    meeting = _meeting(name)
    return None if meeting is None else class_names()[meeting[0]]


def cluster(name: str) -> list[str]:
    """All other classes below the kind that a class and its nearest one have in common, in the order of their numbers:
    those of a great white shark are the other sharks. Empty for a name that no class has."""
    meeting = _meeting(name)
    members = () if meeting is None else _below()[meeting[1]]
    return [class_names()[wnid] for wnid in members if class_names()[wnid].lower() != name.lower()]
