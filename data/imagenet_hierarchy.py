"""The hierarchy of ImageNet's classes in WordNet, from a shipped table."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HIERARCHY_FILE = Path(__file__).with_name("imagenet_hierarchy.csv")  # scripts/tables/imagenet_hierarchy.py writes it
COMMENT = "#"
ROOT_WNID = "n00001740"  # entity, the hypernym of all synsets
COLUMNS = ("index", "id", "name", "kinds")


@dataclass(frozen=True)
class Synset:
    """A synset of WordNet.

    Args:
        index: number of the class, None for a hypernym of classes.
        hypernyms: ids of the direct hypernyms, usually one; none for the root.
    """

    index: int | None
    name: str
    hypernyms: tuple[str, ...]


@cache
def read_synsets() -> Mapping[str, Synset]:
    """The synsets by WordNet id (`n01440764`); classes come first, in the order of their numbers."""
    with HIERARCHY_FILE.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith(COMMENT))
        return {
            row["id"]: Synset(int(row["index"]) if row["index"] else None, row["name"], tuple(row["kinds"].split()))
            for row in rows
        }


@cache
def class_names() -> Mapping[str, str]:
    """The names of the 1000 classes by WordNet id, in the order of their numbers."""
    return {wnid: synset.name for wnid, synset in read_synsets().items() if synset.index is not None}


def hypernym_distances(wnid: str) -> dict[str, int]:
    """The number of steps from a synset to each of its direct and indirect hypernyms; 0 to itself."""
    distances, level, synsets = {wnid: 0}, [wnid], read_synsets()
    while level:
        next_level = {above for current in level for above in synsets[current].hypernyms if above not in distances}
        distances |= dict.fromkeys(next_level, distances[level[0]] + 1)
        level = sorted(next_level)
    return distances


@cache
def _classes_below() -> Mapping[str, Mapping[str, int]]:
    """For each synset the classes below it and the number of steps to them."""
    classes_below: dict[str, dict[str, int]] = {}
    for wnid in class_names():
        for hypernym, distance in hypernym_distances(wnid).items():
            classes_below.setdefault(hypernym, {})[wnid] = distance
    return classes_below


@cache
def _nearest_with_hypernym(name: str) -> tuple[str, str] | None:
    """The ids of the nearest other class and of their common hypernym; None for an unknown class."""
    wnid = next((wnid for wnid, class_name in class_names().items() if class_name.lower() == name.lower()), None)
    if wnid is None:
        return None
    paths = [
        (up + down, -hypernym_distances(hypernym)[ROOT_WNID], read_synsets()[other].index, other, hypernym)
        for hypernym, up in hypernym_distances(wnid).items()
        for other, down in _classes_below()[hypernym].items() if other != wnid
    ]  # fmt: skip
    return min(paths)[-2:]


def nearest(name: str) -> str | None:
    """The class at the smallest distance in the hierarchy; None for an unknown class; letter case is ignored.

    Of several the one with the deepest common hypernym is returned, then the one with the smallest number.
    """
    pair = _nearest_with_hypernym(name)
    return None if pair is None else class_names()[pair[0]]


def cluster(name: str) -> list[str]:
    """All other classes below the common hypernym of a class and its nearest class, in the order of their numbers.

    For a great white shark these are the other sharks. Empty for an unknown class.
    """
    pair = _nearest_with_hypernym(name)
    members = () if pair is None else _classes_below()[pair[1]]
    return [class_names()[wnid] for wnid in members if class_names()[wnid].lower() != name.lower()]
