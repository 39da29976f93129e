"""Data sets in the hub's layout, from folders that the tests write."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from classifier_lens.data.hugging_face import HubDataset, load_hub_dataset
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.types import UserError

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
SHADES = {0: "crab", 50: "fish", 100: "fish", 150: "crab"}


def png(shade: int) -> bytes:
    """An image of one shade of gray."""
    buffer = BytesIO()
    Image.new("RGB", (20, 16), (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def write_tree(folder: Path) -> Path:
    """A tree <split>/<class>/<image>."""
    for shade, label in SHADES.items():
        path = folder / "test" / label / f"{shade:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(shade))
    return folder


def write_parquet(folder: Path, column: Any = None, values: list[Any] | None = None) -> Path:
    """A file of rows `image`, `kind`; kinds are numbers with names, or what `column` and `values` say."""
    kinds = datasets.ClassLabel(names=["fish", "crab", "boat"]) if column is None else column
    rows = {"picture": [{"bytes": png(shade), "path": None} for shade in SHADES]}
    features = datasets.Features({"picture": datasets.Image(), "kind": kinds})
    own = [["fish", "crab"].index(label) for label in SHADES.values()] if values is None else values
    (folder / "data").mkdir(parents=True)
    table = datasets.Dataset.from_dict({**rows, "kind": own}, features=features)
    table.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of the package is in the folder of the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def read(folder: Path, count: int | None, **other: Any) -> HubDataset:
    keys = {
        "config_name": None,
        "revision": None,
        "split": "test",
        "image_column": "picture",
        "label_column": "kind",
        "seed": 0,
    }
    return load_hub_dataset(**{"name": str(folder), "count": count, **keys, **other})


def shown(data: Dataset) -> dict[int, str]:
    """The classes by the shades of the images."""
    return {round(float(data[i].image.mean()) * 255): data[i].label for i in range(len(data))}


@pytest.mark.parametrize("count", [None, 4])
def test_parquet_files_are_read(tmp_path: Path, count: int | None) -> None:
    data: Dataset = read(write_parquet(tmp_path / "x"), count)
    assert data.labels == ("fish", "crab", "boat"), "in the order of their numbers"
    assert shown(data) == SHADES and data[0].image.shape == (3, 16, 20) and data[0].caption is None
    assert {data[i].name for i in range(4)} == {f"test-{i:06d}" for i in range(4)}
    assert all(data[i].label == "crab" for i in data.indices("Crab")) and len(data.indices("Crab")) == 2
    assert data.nearest_class("crab") is None and data.similar_classes("crab") == []
    with pytest.raises(IndexError):
        data[4]


@pytest.mark.parametrize("count", [None, 4])
def test_a_tree_of_classes_is_read(tmp_path: Path, count: int | None) -> None:
    data = read(write_tree(tmp_path / "x"), count, image_column="image", label_column="label")
    assert shown(data) == SHADES and data.labels == ("crab", "fish")


def test_classes_may_be_texts(tmp_path: Path) -> None:
    words = ["rock crab", "a fish", "a fish", "rock crab"]
    data = read(write_parquet(tmp_path / "x", datasets.Value("string"), words), 4)
    assert data.labels == ("a fish", "rock crab") and shown(data)[0] == "rock crab"


def test_the_first_rows_are_streamed(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "x")
    assert shown(read(folder, 2)) == {0: "crab", 50: "fish"}
    assert not list((tmp_path / "cache").rglob("*.arrow")), "nothing is kept"


@pytest.mark.parametrize("count", [None, 4])
def test_the_digest_depends_on_images_and_order(tmp_path: Path, count: int | None) -> None:
    folder = write_parquet(tmp_path / "x")
    digest = read(folder, count).digest
    assert read(folder, count).digest == digest != read(folder, count, seed=1).digest
    other = write_parquet(tmp_path / "y", values=[2, 2, 2, 2])
    assert read(other, count).digest != digest


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"name": None}, "data.name is missing: give a data set of the hub or a folder"),
        ({"name": "./absent"}, "data.name=./absent: split test cannot be read: "),
        ({"split": "exam"}, "data.name=.*: split exam cannot be read: .*exam"),
        ({"image_column": "photo"}, "data.image_column=photo: allowed are picture, kind"),
        ({"label_column": "class"}, "data.label_column=class: allowed are picture, kind"),
        ({"image_column": "kind"}, "data.image_column: the column contains int instead of images"),
        ({"count": 5}, "data.count=5: allowed are 1 to 4, or null for all"),
    ],
)
def test_missing_parts_are_named_in_one_line(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    folder = write_parquet(tmp_path / "x")
    with pytest.raises(UserError, match=message) as refused:
        read(folder, **{"count": 2, **other})
    assert "\n" not in str(refused.value)


def test_a_split_without_labels_is_refused(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "x", values=[-1, -1, -1, -1])
    with pytest.raises(UserError, match="an image has the class -1; choose a split whose labels are published"):
        read(folder, 4)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "x")
    (folder / "test" / "crab" / "000.png").write_bytes(png(0)[:40])
    data = read(folder, 4, image_column="image", label_column="label")
    with pytest.raises(UserError, match=r"^data.name=.*: image 0: cannot be read .* expected a complete image"):
        shown(data)


def test_an_unreachable_hub_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'ethz/food101' on the Hub\n(LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = "data.name=ethz/food101: split test cannot be read: Couldn't reach 'ethz/food101' on the Hub$"
    with pytest.raises(UserError, match=message):
        read(Path("ethz/food101"), 4)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="data=hf: its package is not installed; pip install datasets"):
        read(Path("x"), 4)
