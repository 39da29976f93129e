"""Human annotations of core and spurious features: Salient ImageNet (Singla & Feizi, 2022), or files with the same
columns."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from classifier_lens.data.digests import hash_values
from classifier_lens.runner.configuration.value_ranges import IndexRange
from classifier_lens.runner.files.text import read_text
from classifier_lens.runner.types import UserError

COLUMNS = ("Input.class_index", "Input.feature_index", "Input.feature_rank", "Answer.main")
CORE = "main_object"
ANSWER_VALUES = (CORE, "separate_object", "background")


@dataclass(frozen=True)
class AnnotatedFeature:
    """An annotated feature of a class.

    Args:
        index: of the feature.
        rank: among the features of the class, from 1.
        is_core: whether most annotators saw it on the main object.
    """

    index: int
    rank: int
    is_core: bool


@dataclass(frozen=True)
class FeatureAnnotations:
    """The annotated features of all classes.

    Args:
        features: by class number, in the order of their ranks.
        animate_classes: ranges [first, end) of the numbers of classes that are animals.
    """

    features: Mapping[int, Sequence[AnnotatedFeature]]
    animate_classes: Sequence[Sequence[int]]

    @property
    def digest(self) -> str:
        return hash_values(sorted(self.features.items()), self.animate_classes)

    def is_animate(self, label: int) -> bool:
        return any(first <= label < end for first, end in self.animate_classes)

    def num_spurious(self, label: int) -> int:
        """The number of spurious features of a class."""
        return sum(not feature.is_core for feature in self.features[label])

    def group(self, label: int) -> str:
        """`unbiased` if no feature is spurious, `biased` if all are, else `medium`."""
        return {0: "unbiased", len(self.features[label]): "biased"}.get(self.num_spurious(label), "medium")

    def stratified_sample(self, per_level: int, seed: int) -> list[int]:
        """Random classes in the order of their numbers, up to `per_level` for each number of spurious features."""
        levels: dict[int, list[int]] = defaultdict(list)
        for label in sorted(self.features):
            levels[self.num_spurious(label)].append(label)
        generator = torch.Generator().manual_seed(seed)
        sample = []
        for _, labels in sorted(levels.items()):
            order = torch.randperm(len(labels), generator=generator).tolist()
            sample += [labels[i] for i in order[:per_level]]
        return sorted(sample)


def read_annotations(path: str | None, animate_classes: Sequence[IndexRange]) -> FeatureAnnotations:
    """The annotations of a CSV file with one row per annotator and feature.

    A feature is core if more than half of its rows have the value `main_object`. Raises UserError for a missing file or
    column and for invalid values.
    """
    key = f"task.annotations.path={path or 'null'}"
    wanted = f"a CSV with the columns {', '.join(COLUMNS)}"
    if path is None or not Path(path).is_file():
        raise UserError(f"{key}: no such file; expected {wanted}")
    votes: dict[tuple[int, int], list[bool]] = defaultdict(list)
    ranks: dict[tuple[int, int], int] = {}
    with io.StringIO(read_text(key, path, wanted), newline="") as file:
        rows = csv.DictReader(file)
        if missing := [column for column in COLUMNS if column not in (rows.fieldnames or ())]:
            raise UserError(f"{key}: has no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
        for row in rows:
            numbers = [row[column].strip() for column in COLUMNS[:3]]
            if not all(number.isdigit() for number in numbers) or row["Answer.main"] not in ANSWER_VALUES:
                values = ", ".join([*numbers, row["Answer.main"]])
                raise UserError(
                    f"{key}, line {rows.line_num}: {values}; allowed are three numbers and one of "
                    f"{', '.join(ANSWER_VALUES)}"
                )
            label, feature, rank = map(int, numbers)
            votes[label, feature].append(row["Answer.main"] == CORE)
            ranks[label, feature] = rank
    features: dict[int, list[AnnotatedFeature]] = defaultdict(list)
    for (label, feature), is_core in votes.items():
        features[label].append(AnnotatedFeature(feature, ranks[label, feature], 2 * sum(is_core) > len(is_core)))
    ranked = {label: sorted(of_class, key=lambda feature: feature.rank) for label, of_class in features.items()}
    return FeatureAnnotations(ranked, animate_classes)
