"""Write the table of ImageNet's classes and their hypernyms, data/imagenet_hierarchy.csv.

    python scripts/tables/imagenet_hierarchy.py /usr/share/wordnet data/imagenet_hierarchy.csv

The first argument is the folder of WordNet 3.0's `data.noun` (Debian's package wordnet-base). ImageNet's ids are the
offsets of its lines. Their order is timm's, the classes' names are those of models/classifier/loaders/class_names.py.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from timm.data import ImageNetInfo

from classifier_lens.data.imagenet_hierarchy import COLUMNS, COMMENT
from classifier_lens.models.classifier.loaders.class_names import imagenet_labels

HYPERNYMS = ("@", "@i")  # pointers of synsets, and of instances, to their hypernyms; wninput(5WN)
HEADER = """ImageNet's 1000 classes in the order of their numbers and, without a number, all that they are kinds of.
id: ImageNet's, `n` and the offset in WordNet 3.0's data.noun; name: of a class open_clip's, else WordNet's first word;
kinds: ids of the hypernyms. Written by scripts/tables/imagenet_hierarchy.py from WordNet 3.0, whose notice follows.
"""


@dataclass(frozen=True)
class Synset:
    """A line of `data.noun`: its first word, and the offsets of its hypernyms."""

    name: str
    hypernyms: tuple[str, ...]


def read_nouns(lines: Iterable[str]) -> dict[str, Synset]:
    """The synsets of `data.noun` by offset (wndb(5WN)); lines of the license start with two spaces."""
    synsets = {}
    for line in lines:
        if line.startswith("  "):
            continue
        fields = line.split(" | ")[0].split()
        first = 4 + 2 * int(fields[3], 16)  # after the words, each with a number
        pointers = [fields[i : i + 4] for i in range(first + 1, first + 1 + 4 * int(fields[first]), 4)]
        kinds = tuple(target for symbol, target, _, _ in pointers if symbol in HYPERNYMS)
        synsets[fields[0]] = Synset(fields[4].replace("_", " "), kinds)
    return synsets


def hypernym_closure(classes: Iterable[str], nouns: Mapping[str, Synset]) -> list[str]:
    """The offsets of all direct and indirect hypernyms of the classes, sorted, without the classes."""
    visited, queue = set(), list(classes)
    while queue:
        offset = queue.pop()
        if offset not in visited:
            visited.add(offset)
            queue += nouns[offset].hypernyms
    return sorted(visited - set(classes))


def hierarchy_table(ids: Sequence[str], names: Sequence[str], nouns: Mapping[str, Synset]) -> list[tuple[str, ...]]:
    """The rows in `COLUMNS`: the classes in their order, then their hypernyms."""

    def row(index: str, offset: str, name: str) -> tuple[str, ...]:
        return index, f"n{offset}", name, " ".join(f"n{kind}" for kind in nouns[offset].hypernyms)

    offsets = [wnid.removeprefix("n") for wnid in ids]
    classes = [row(str(i), offset, name) for i, (offset, name) in enumerate(zip(offsets, names, strict=True))]
    return classes + [row("", offset, nouns[offset].name) for offset in hypernym_closure(offsets, nouns)]


def wordnet_license(lines: Iterable[str]) -> str:
    """WordNet's license, at the start of its files, without line numbers."""
    license_lines = (re.sub(r"^\s+\d+ ?", "", line).rstrip() for line in lines if line.startswith("  "))
    return "\n".join(license_lines) + "\n"


def main(wordnet: str, out: str) -> None:
    """Write the table. Raises SystemExit if WordNet is missing."""
    source = Path(wordnet) / "data.noun"
    if not source.is_file():
        raise SystemExit(f"{source}: no such file; install WordNet 3.0, Debian's package wordnet-base")
    lines = source.read_text(encoding="ascii").splitlines()
    rows = hierarchy_table(ImageNetInfo("imagenet-1k").label_names(), imagenet_labels(), read_nouns(lines))
    with open(out, "w", newline="", encoding="utf-8") as file:
        file.writelines(f"{COMMENT} {line}".rstrip() + "\n" for line in (HEADER + wordnet_license(lines)).splitlines())
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(f"{out}: {len(rows)} rows, {Path(out).stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: imagenet_hierarchy.py <folder of data.noun> <table to write>")
    main(sys.argv[1], sys.argv[2])
