"""The hierarchy of ImageNet's classes: hypernyms and similar classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from classifier_lens.data.imagenet import ImageNet
from classifier_lens.data.imagenet_hierarchy import (
    ROOT_WNID,
    class_names,
    cluster,
    hypernym_distances,
    nearest,
    read_synsets,
)

IDS = {name: wnid for wnid, name in class_names().items()}


def above(name: str) -> dict[str, int]:
    """Distances of hypernyms by name."""
    return {read_synsets()[wnid].name: steps for wnid, steps in hypernym_distances(IDS[name]).items()}


def distance(a: str, b: str) -> int:
    """The distance of two classes by way of a common hypernym."""
    up, down = hypernym_distances(IDS[a]), hypernym_distances(IDS[b])
    return min(up[kind] + down[kind] for kind in set(up) & set(down))


def test_hypernyms_of_a_shark_include_fish_and_animal() -> None:
    steps = above("great white shark")
    known = {"great white shark": 0, "mackerel shark": 1, "shark": 2, "elasmobranch": 3, "cartilaginous fish": 4}
    assert {name: steps[name] for name in known} == known
    assert steps["fish"] < steps["vertebrate"] < steps["animal"] < steps["entity"]
    assert read_synsets()[ROOT_WNID].name == "entity" and read_synsets()[ROOT_WNID].hypernyms == ()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("great white shark", "hammerhead shark"),  # shark: 2 up, 1 down; the tiger shark is 2 down
        ("hammerhead shark", "great white shark"),  # both sharks are 1 up, 2 down: the smaller number
        ("goldfish", "tench"),
        ("red fox", "kit fox"),
        ("volcano", "mountain"),
        ("padlock", "combination lock"),
        ("American alligator", "Nile crocodile"),
        ("Leonberger", "Dalmatian"),  # as near as any dog: the smaller number
    ],
)
def test_the_nearest_class(name: str, other: str) -> None:
    assert nearest(name) == nearest(name.upper()) == other


def test_the_nearest_class_is_at_the_smallest_distance() -> None:
    for name in list(class_names().values())[::100]:
        result = nearest(name)
        assert result is not None and result != name
        assert distance(name, result) == min(distance(name, other) for other in IDS if other != name)


def test_a_cluster_has_the_common_hypernym_of_class_and_nearest_class() -> None:
    sharks = {"great white shark", "tiger shark", "hammerhead shark"}
    assert all(set(cluster(shark)) == sharks - {shark} for shark in sharks)
    assert cluster("fiddler crab") == ["Dungeness crab", "rock crab", "red king crab"]
    assert cluster("GOLDFISH") == ["tench"]
    for name in list(class_names().values())[::50]:
        assert nearest(name) in cluster(name) and name not in cluster(name)


def test_unknown_names_have_no_similar_classes() -> None:
    assert nearest("Bronzed Cowbird") is None and cluster("Bronzed Cowbird") == []
    assert nearest("shark") is None, "a kind, but no class"


def test_the_imagenet_data_set_uses_the_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "n01484850").mkdir()
    Image.new("RGB", (20, 16)).save(tmp_path / "n01484850" / "a.png")
    data = ImageNet(tmp_path, 0)
    assert data.nearest_class(data[0].label) == "hammerhead shark"
    assert data.similar_classes(data[0].label) == ["tiger shark", "hammerhead shark"]
    assert data.nearest_class("my own class") is None and data.similar_classes("my own class") == []
