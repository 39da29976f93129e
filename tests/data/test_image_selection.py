"""Selection of the images of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from classifier_lens.data.image_selection import select_images
from classifier_lens.data.planted import CLASSES, PlantedDataset
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.types import UserError
from tests.conftest import TinyClassifier
from tests.tasks.tiny import Pictures

LABELS = ("crab", "fish", "boat", "Crab", "fish", "crab")


@pytest.fixture
def images() -> Pictures:
    """Six images x0 … x5 of three classes with a shade by position."""
    return Pictures([torch.full((3, 16, 16), i / 10) for i in range(6)], LABELS)


def names(data: Dataset) -> list[str]:
    return [data[i].name for i in range(len(data))]


def test_without_a_selection_the_data_set_is_returned(images: Pictures) -> None:
    assert select_images(images, None, None) is images


@pytest.mark.parametrize(
    ("classes", "indices", "result"),
    [
        (["fish"], None, ["x1", "x4"]),
        (["boat", "CRAB"], None, ["x0", "x2", "x3", "x5"]),
        (None, [4, 0], ["x4", "x0"]),
        (["crab", "boat"], [5, 4, 2], ["x5", "x2"]),
    ],
)
def test_classes_and_positions(
    images: Pictures, classes: list[str] | None, indices: list[int] | None, result: list[str]
) -> None:
    data = select_images(images, classes, indices)
    assert names(data) == result and len(data) == len(result)
    assert [data[i].image.mean() for i in range(len(data))] == [images[int(n[1])].image.mean() for n in result]
    for label in ("crab", "fish", "boat"):
        assert data.indices(label) == [i for i in range(len(data)) if data[i].label.lower() == label]
    with pytest.raises(IndexError):
        data[len(data)]


def test_labels_are_the_selected_ones(images: Pictures) -> None:
    assert select_images(images, ["boat", "Fish"], None).labels == ("fish", "boat"), "in the data set's order"
    assert select_images(images, None, [0]).labels == images.labels


def test_the_digest_depends_on_data_set_and_selection(images: Pictures) -> None:
    selections: list[tuple[Any, Any]] = [(["fish"], None), (["crab"], None), (None, [0, 4]), (None, [4, 0])]
    digests = [select_images(images, *selection).digest for selection in selections]
    assert digests == [select_images(images, *selection).digest for selection in selections]
    assert len({images.digest, *digests, select_images(Pictures([], [], "other"), None, None).digest}) == 6
    assert select_images(images, [*LABELS], None).digest != images.digest
    assert select_images(images, ["fish"], None).digest == select_images(images, None, [1, 4]).digest, "the same images"


def test_similar_classes_are_those_of_the_whole_data_set() -> None:
    data = select_images(PlantedDataset("test", 60, 0, "independent", None), ["rock crab"], None)
    assert {data[i].label for i in range(len(data))} == {"rock crab"}
    assert data.nearest_class("rock crab") == "fiddler crab" and data.similar_classes("rock crab") == ["fiddler crab"]


@pytest.mark.parametrize(
    ("classes", "indices", "message"),
    [
        (["crab", "whale"], None, "select.classes=whale: the data set has no such image; its classes are crab, fish"),
        (None, [0, 6], "select.indices=6: allowed are 0 to 5, positions in the seed's order"),
        (None, [-1], "select.indices=-1: allowed are 0 to 5"),
        (None, [1, 2, 1], "select.indices=1: occurs more than once"),
        (["boat"], [0, 1], r"select.classes=\['boat'\], select.indices=\[0, 1\]: no image is left"),
        ("boat", None, r"select.classes=boat: allowed are names as \[a, b\], or null for all"),
        (None, 3, r"select.indices=3: allowed are positions as \[0, 7\], or null for all"),
        (None, ["x3"], "select.indices=x3: allowed are 0 to 5"),
        ([], None, "no image is left"),
        (None, [], "no image is left"),
    ],
)
def test_wrong_selections_are_refused(images: Pictures, classes: Any, indices: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        select_images(images, classes, indices)
    assert "\n" not in str(refused.value)


def test_a_run_uses_the_selected_images(tmp_path: Path) -> None:
    config = compose_config(["select.classes=[viaduct]", "data.count=100", "logger=none", f"outputs={tmp_path}"])
    classifier = TinyClassifier()
    parts = build(config, generator=None, classifier=classifier, logger=None)
    assert parts.data.labels == ("viaduct",)
    assert 0 < len(parts.data) == len(parts.data.indices("viaduct")) < 100
    whole = PlantedDataset("test", 100, 0, "independent", None)
    assert build(config, generator=None, classifier=classifier, logger=None, data=whole).data is whole
    assert set(whole.labels) == set(CLASSES)


@pytest.mark.parametrize(("share", "side", "first"), [(0.5, 8, 4), (0.8, 13, 1), (0.0625, 1, 7)])
def test_the_central_square_of_each_image(share: float, side: int, first: int) -> None:
    columns = torch.arange(16).expand(3, 16, 16) / 16
    data = select_images(Pictures([columns] * 2, LABELS[:2]), None, [1], share)
    shown = data[0]
    assert shown.name == "x1" and shown.image.shape == (3, side, side) and shown.image[0, 0, 0] == first / 16
    assert (
        data.indices("fish") == [0]
        and data.digest != select_images(Pictures([columns] * 2, LABELS[:2]), None, [1]).digest
    )


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_center_crop_outside_its_range_is_refused(images: Pictures, share: float) -> None:
    with pytest.raises(UserError, match=f"select.center_crop={share}: allowed are numbers above 0 and up to 1"):
        select_images(images, None, None, share)
