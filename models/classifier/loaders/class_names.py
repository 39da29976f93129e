"""Class names, and a check of their order against that in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

import numpy as np
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from classifier_lens.runner.files.text import read_lines
from classifier_lens.runner.types import UserError

WANTED = "expected a list of names, in the order of the outputs"
MAX_CHARS_SHOWN = 60  # characters of an invalid name in an error

# Two pairs of classes share a name in open_clip's list; one class of each pair gets another name from WordNet.
IMAGENET_NAME_OVERRIDES = {744: "projectile", 836: "sunglass"}


def read_labels(labels: str | Path | Iterable[object]) -> tuple[str, ...]:
    """Class names without surrounding whitespace.

    labels: `imagenet`, a text file with one name per line, or the names themselves. Raises UserError for a collection
    without an order and for values that are not names.
    """
    if isinstance(labels, (str, Path)):
        if labels == "imagenet":
            return imagenet_labels()
        return tuple(read_lines(f"classifier.labels={labels}", labels, "`imagenet` or a file of one name per line"))
    if isinstance(labels, (bytes, Mapping, Set)) or not isinstance(labels, Iterable):
        raise UserError(f"classifier.labels: is a {type(labels).__name__}; {WANTED}")
    return tuple(_to_name(i, label) for i, label in enumerate(labels))


def _to_name(position: int, label: object) -> str:
    """The label as text; integers are allowed. Raises UserError for other types and for empty labels."""
    if not isinstance(label, (str, int, np.integer)) or not (name := str(label).strip()):
        raise UserError(f"classifier.labels[{position}]={str(label)[:MAX_CHARS_SHOWN]}: is not a name; {WANTED}")
    return name


# Entries of checkpoints with the classes: by name, by number, or as a list.
CLASS_ORDER_ENTRIES = ("class_to_idx", "label2id", "idx_to_class", "id2label", "classes", "class_names")


def check_class_order(key: str, content: object, labels: Sequence[str]) -> None:
    """Raises UserError, which begins with `key`, if a checkpoint lists the same classes in another order."""
    if not isinstance(content, Mapping):
        return
    for entry in CLASS_ORDER_ENTRIES:
        recorded = _ordered_classes(content.get(entry))
        if sorted(recorded) == sorted(labels) and list(labels) != recorded:
            i = next(i for i, label in enumerate(labels) if label != recorded[i])
            raise UserError(
                f"{key}: output {i} is {recorded[i]} by its {entry}, but {labels[i]} by classifier.labels; "
                "give the names in the order in which the network was trained"
            )


def _ordered_classes(classes: object) -> list[str]:
    """Classes in the order of their numbers; empty if the format is unknown."""
    if isinstance(classes, Mapping):
        pairs = [(number, name) if isinstance(name, str) else (name, number) for number, name in classes.items()]
        if all(str(number).isdigit() for number, _ in pairs):
            return [str(name) for _, name in sorted(pairs, key=lambda pair: int(str(pair[0])))]
    if isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes):
        return list(classes)
    return []


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k, curated by open_clip's authors and all different."""
    names = list(IMAGENET_CLASSNAMES)
    for index, name in IMAGENET_NAME_OVERRIDES.items():
        names[index] = name
    return tuple(names)
