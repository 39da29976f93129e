"""Names of problems: fit for files, and no two equal."""

from __future__ import annotations

import re

import pytest

from classifier_lens.models.classifier.loaders.class_names import imagenet_labels
from classifier_lens.tasks.problems.problem_names import slug


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a fiddler crab", "a-fiddler-crab"), ("potter's wheel", "potter-s-wheel"), ("7", "7"), ("猫", "猫"),
        ("Café au lait", "café-au-lait"), ("impala (antelope)", "impala-antelope"), ("कुत्ता", "कुत्ता"),
    ],
)  # fmt: skip
def test_a_name_that_is_right_stays_readable(name: str, wanted: str) -> None:
    assert slug(name) == slug(name, ["x", name]) == wanted


def test_names_stay_apart_whatever_they_are_made_of() -> None:
    names = [
        "C",
        "C++",
        "C#",
        "c",
        "猫",
        "狗",
        "++",
        "--",
        "Cardigan",
        "cardigan",
        "x" * 300,
        "x" * 301,
        "猫" * 100,
        "caf\u00e9",
    ]
    found = [slug(name, names) for name in names]
    assert len({name.casefold() for name in found}) == len(names)
    assert all(0 < len(name.encode()) <= 80 and "/" not in name and " " not in name for name in found)
    assert slug("caf\u00e9") == slug("cafe\u0301")


def test_names_of_imagenet_are_as_they_were() -> None:
    labels = imagenet_labels()
    plain = {name: re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in labels}
    assert {name: slug(name, labels) for name in labels} == plain
