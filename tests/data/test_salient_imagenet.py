"""Annotations of Salient ImageNet: majorities, levels and the stratified sample of a file with known counts."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from classifier_lens.data.salient_imagenet import read_annotations
from classifier_lens.runner.types import UserError

HEADER = (
    "WorkerId", "Input.wordnet_id", "Input.class_index", "Input.feature_index", "Input.feature_rank", "Answer.main",
    "Answer.confidence", "Answer.reasons",
)  # fmt: skip
# How many of a feature's five rows say main_object; the rest speak of other things.
CORE, SPURIOUS = 3, 2
# Classes by how many of their five features are spurious; classes are numbered level by level.
CLASSES = {0: 9, 1: 4, 2: 3, 3: 2, 4: 2, 5: 3}
ANIMATE = [[0, 10], [20, 22]]


def answers(label: int, feature: int, rank: int, core: int) -> list[tuple[object, ...]]:
    """The rows of five annotators."""
    message = ["main_object"] * core + ["background", "separate_object", "background", "background", "background"]
    return [(f"w{i}", f"n{label:08}", label, feature, rank, message[i], 5, "because") for i in range(5)]


def written(path: Path, rows: list[tuple[object, ...]], header: tuple[str, ...] = HEADER) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Feature 10 + rank of every class; ranks are in descending order in the file."""
    levels = [level for level, count in CLASSES.items() for _ in range(count)]
    rows = [
        row
        for label, level in enumerate(levels)
        for rank in (5, 4, 3, 2, 1)
        for row in answers(label, 10 + rank, rank, SPURIOUS if rank <= level else CORE)
    ]
    return written(tmp_path / "answers.csv", rows)


def test_a_feature_is_core_if_most_annotators_saw_the_object(tmp_path: Path) -> None:
    rows = [row for votes in range(6) for row in answers(7, votes, votes + 1, votes)]
    result = read_annotations(written(tmp_path / "a.csv", rows), ANIMATE)
    assert [(f.index, f.rank, f.is_core) for f in result.features[7]] == [
        (0, 1, False), (1, 2, False), (2, 3, False), (3, 4, True), (4, 5, True), (5, 6, True),
    ]  # fmt: skip
    four = read_annotations(written(tmp_path / "b.csv", answers(7, 0, 1, 2)[:4]), ANIMATE)
    assert not four.features[7][0].is_core, "two of four are no majority"


def test_levels_groups_and_animals(path: str) -> None:
    result = read_annotations(path, ANIMATE)
    assert Counter(result.num_spurious(label) for label in result.features) == CLASSES
    assert [f.rank for f in result.features[0]] == [1, 2, 3, 4, 5]
    groups = Counter(result.group(label) for label in result.features)
    assert groups == {"unbiased": 9, "medium": 11, "biased": 3}
    assert [label for label in range(23) if result.is_animate(label)] == [*range(10), 20, 21]


def test_the_sample_has_equally_many_classes_of_every_level(path: str) -> None:
    result = read_annotations(path, ANIMATE)
    sample = result.stratified_sample(3, 0)
    assert Counter(map(result.num_spurious, sample)) == {0: 3, 1: 3, 2: 3, 3: 2, 4: 2, 5: 3}, (
        "all of a level that has fewer"
    )
    assert sample == sorted(set(sample)) == result.stratified_sample(3, 0)
    others = {tuple(result.stratified_sample(3, seed)) for seed in range(40)}
    assert len(others) > 1, "another seed draws others"
    assert {label for subset in others for label in subset} >= set(range(9)), "any class may be sample"


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (HEADER[:3] + HEADER[4:], (), "has no column Input.feature_index"),
        (HEADER, ("w", "n1", 1, 2, 3, "sky", 5, ""), "line 2: 1, 2, 3, sky; allowed are three numbers and one of main"),
        (HEADER, ("w", "n1", "x", 2, 3, "background", 5, ""), "line 2: x, 2, 3, background"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, header: tuple[str, ...], row: tuple[object, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_annotations(written(tmp_path / "a.csv", [row] if row else [], header), ANIMATE)
    with pytest.raises(UserError, match="no such file"):
        read_annotations(str(tmp_path / "none.csv"), ANIMATE)
    with pytest.raises(UserError, match=r"task.annotations.path=null: no such file"):
        read_annotations(None, ANIMATE)
