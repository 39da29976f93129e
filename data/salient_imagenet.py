"""Which features of a network people found spurious: the answers of Salient ImageNet (Singla & Feizi, 2022), or others
in the same columns."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from classifier_lens.data.image_selection import digest_of
from classifier_lens.runner.configuration.value_ranges import Span
from classifier_lens.runner.files.text import read_text
from classifier_lens.runner.types import UserError

COLUMNS = ("Input.class_index", "Input.feature_index", "Input.feature_rank", "Answer.main")
CORE = "main_object"
ANSWERS = (CORE, "separate_object", "background")


@dataclass(frozen=True)
class Annotated:
    """A feature of a class: index: of the feature; rank: among the class's, from 1; core: whether most people saw it on
    the main object."""

    index: int
    rank: int
    core: bool


@dataclass(frozen=True)
class Annotations:
    """features: by class number, ranked; animate: ranges [first, end) of numbers of classes that are animals."""

    features: Mapping[int, Sequence[Annotated]]
    animate: Sequence[Sequence[int]]

    @property
    def digest(self) -> str:
        return digest_of(sorted(self.features.items()), self.animate)

    def is_animate(self, label: int) -> bool:
        return any(first <= label < end for first, end in self.animate)

    def level(self, label: int) -> int:
        """How many of a class's features are spurious."""
        return sum(not feature.core for feature in self.features[label])

    def group(self, label: int) -> str:
        """`unbiased`: none is spurious; `biased`: all are; `medium`: some."""
        return {0: "unbiased", len(self.features[label]): "biased"}.get(self.level(label), "medium")

    def subset(self, per_level: int, seed: int) -> list[int]:
        """So many classes of every level, in the order of their numbers, all of a level that has fewer."""
        levels: dict[int, list[int]] = defaultdict(list)
        for label in sorted(self.features):
            levels[self.level(label)].append(label)
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for _, labels in sorted(levels.items()):
            order = torch.randperm(len(labels), generator=generator).tolist()
            drawn += [labels[i] for i in order[:per_level]]
        return sorted(drawn)


def read_answers(path: str | None, animate: Sequence[Span]) -> Annotations:
    """The answers of a CSV file, a row per person: a feature is core if more than half of its rows say `main_object`.

    Raises UserError for a missing file or column, and for a value that is not allowed.
    """
    key = f"task.labels.path={path or 'null'}"
    wanted = f"a CSV with the columns {', '.join(COLUMNS)}"
    if path is None or not Path(path).is_file():
        raise UserError(f"{key}: no such file; wanted is {wanted}")
    votes: dict[tuple[int, int], list[bool]] = defaultdict(list)
    ranks: dict[tuple[int, int], int] = {}
    with io.StringIO(read_text(key, path, wanted), newline="") as file:
        rows = csv.DictReader(file)
        if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
            raise UserError(f"{key}: has no column {', '.join(missing)}; wanted are {', '.join(COLUMNS)}")
        for row in rows:
            numbers = [row[column].strip() for column in COLUMNS[:3]]
            if not all(number.isdigit() for number in numbers) or row["Answer.main"] not in ANSWERS:
                said = ", ".join([*numbers, row["Answer.main"]])
                raise UserError(
                    f"{key}, line {rows.line_num}: {said}; allowed are three numbers and one of {', '.join(ANSWERS)}"
                )
            label, feature, rank = map(int, numbers)
            votes[label, feature].append(row["Answer.main"] == CORE)
            ranks[label, feature] = rank
    features: dict[int, list[Annotated]] = defaultdict(list)
    for (label, feature), cast in votes.items():
        features[label].append(Annotated(feature, ranks[label, feature], 2 * sum(cast) > len(cast)))
    return Annotations({c: sorted(own, key=lambda f: f.rank) for c, own in features.items()}, animate)
