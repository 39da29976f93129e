"""The names of classes."""

from __future__ import annotations

from collections.abc import Sequence

from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from runner.text import read_lines

# Two pairs of classes share a name in open_clip's list; one of each pair takes WordNet's other name for it.
IMAGENET_RENAMED = {744: "projectile", 836: "sunglass"}


def read_labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    """Class names from `imagenet`, from a text file of one name per line, or as they are given."""
    if not isinstance(labels, str):
        return tuple(map(str, labels))
    if labels == "imagenet":
        return imagenet_labels()
    return tuple(read_lines(f"classifier.labels={labels}", labels, "`imagenet` or a file of one name per line"))


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 names of ImageNet-1k, curated by open_clip's authors; no two are equal."""
    names = list(IMAGENET_CLASSNAMES)
    for index, name in IMAGENET_RENAMED.items():
        names[index] = name
    return tuple(names)
