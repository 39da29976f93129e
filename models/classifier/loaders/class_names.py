"""The names of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

import numpy as np
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from classifier_lens.runner.files.text import read_lines
from classifier_lens.runner.types import UserError

WANTED = "wanted is a list of names, in the order of the outputs"
MAX_CHARS_SHOWN = 60  # letters of what is no name

# Two pairs of classes share a name in open_clip's list; one of each pair takes WordNet's other name for it.
IMAGENET_NAME_OVERRIDES = {744: "projectile", 836: "sunglass"}


def read_labels(labels: str | Path | Iterable[object]) -> tuple[str, ...]:
    """Class names from `imagenet`, from a text file of one name per line, or as they are given, without space around
    them. Raises UserError for what has no order, and for what is no name."""
    if isinstance(labels, (str, Path)):
        if labels == "imagenet":
            return imagenet_labels()
        return tuple(read_lines(f"classifier.labels={labels}", labels, "`imagenet` or a file of one name per line"))
    if isinstance(labels, (bytes, Mapping, Set)) or not isinstance(labels, Iterable):
        raise UserError(f"classifier.labels: is a {type(labels).__name__}; {WANTED}")
    return tuple(_name(i, label) for i, label in enumerate(labels))


def _name(place: int, given: object) -> str:
    """A class's name; numbers are names, too. Raises UserError for anything else."""
    if not isinstance(given, (str, int, np.integer)) or not (name := str(given).strip()):
        raise UserError(f"classifier.labels[{place}]={str(given)[:MAX_CHARS_SHOWN]}: is no name; {WANTED}")
    return name


# Where training scripts note their classes: by name, by number, or in their order.
CLASS_ORDER_ENTRIES = ("class_to_idx", "label2id", "idx_to_class", "id2label", "classes", "class_names")


def check_class_order(key: str, content: object, labels: Sequence[str]) -> None:
    """Raises UserError if what lies beside weights names the same classes in another order; key: what errors name."""
    if not isinstance(content, Mapping):
        return
    for name in CLASS_ORDER_ENTRIES:
        told = _in_order(content.get(name))
        if sorted(told) == sorted(labels) and (differ := [i for i, own in enumerate(labels) if own != told[i]]):
            i = differ[0]
            raise UserError(
                f"{key}: by its {name} output {i} is {told[i]}, by classifier.labels {labels[i]}; "
                "write the names in the order in which the network was trained"
            )


def _in_order(noted: object) -> list[str]:
    """Classes in the order of their numbers; none where they are noted in no known way."""
    if isinstance(noted, Mapping):
        pairs = [(number, name) if isinstance(name, str) else (name, number) for number, name in noted.items()]
        if all(str(number).isdigit() for number, _ in pairs):
            return [str(name) for _, name in sorted(pairs, key=lambda pair: int(str(pair[0])))]
    if isinstance(noted, (list, tuple)) and all(isinstance(name, str) for name in noted):
        return list(noted)
    return []


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 names of ImageNet-1k, curated by open_clip's authors; no two are equal."""
    names = list(IMAGENET_CLASSNAMES)
    for index, name in IMAGENET_NAME_OVERRIDES.items():
        names[index] = name
    return tuple(names)
