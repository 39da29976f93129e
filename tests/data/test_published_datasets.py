"""Data sets in their published layouts, written by the tests at a small size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from classifier_lens.data.image_folder import LabeledFiles
from classifier_lens.data.published_datasets import cars, cub, flowers, food101
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.types import UserError

Build = Callable[..., LabeledFiles]


def save(path: Path, shade: int) -> None:
    """An image of one shade of gray."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (shade,) * 3).save(path, quality=100)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_food101(root: Path) -> None:
    """Three images of two dishes, one of them for training."""
    for shade, name in enumerate(("apple_pie/1005649", "grilled_salmon/100", "grilled_salmon/200")):
        save(root / "images" / f"{name}.jpg", 50 * shade)
    write(root / "meta" / "train.txt", "grilled_salmon/100")
    write(root / "meta" / "test.txt", "apple_pie/1005649", "grilled_salmon/200")


def write_cub(root: Path) -> None:
    """Three images of two birds, one of them for training."""
    write(root / "classes.txt", "1 001.Black_footed_Albatross", "2 026.Bronzed_Cowbird")
    names = ("001.Black_footed_Albatross/a.jpg", "026.Bronzed_Cowbird/b.jpg", "026.Bronzed_Cowbird/c.jpg")
    for shade, name in enumerate(names):
        save(root / "images" / name, 50 * shade)
    write(root / "images.txt", *(f"{i} {name}" for i, name in enumerate(names, start=1)))
    write(root / "image_class_labels.txt", "1 1", "2 2", "3 2")
    write(root / "train_test_split.txt", "1 0", "2 1", "3 0")


def records(*rows: tuple[int, str]) -> np.ndarray:
    """Annotations as records of Matlab."""
    return np.array([(k, name) for k, name in rows], dtype=[("class", object), ("fname", object)])


def write_cars(root: Path) -> None:
    """Three images of two cars, one of them for training."""
    (root / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"], dtype=object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": records((2, "00001.jpg"))})
    labelled = records((1, "00001.jpg"), (2, "00002.jpg"))
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": labelled})
    save(root / "cars_train" / "00001.jpg", 50)
    for k in (1, 2):
        save(root / "cars_test" / f"0000{k}.jpg", 100 * (k - 1))


def write_flowers(root: Path) -> None:
    """Three images of two flowers, one of them for training."""
    for k in (1, 2, 3):
        save(root / "jpg" / f"image_0000{k}.jpg", 50 * (k - 1))
    savemat(root / "imagelabels.mat", {"labels": np.array([1, 102, 102])})
    savemat(root / "setid.mat", {"trnid": np.array([2]), "valid": np.array([1, 2]), "tstid": np.array([1, 3])})


WRITE = {food101: write_food101, cub: write_cub, cars: write_cars, flowers: write_flowers}
LABELS = {
    food101: ("apple pie", "grilled salmon"), cub: ("Black footed Albatross", "Bronzed Cowbird"),
    cars: ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"),
    flowers: ("pink primrose", "blackberry lily"),
}  # fmt: skip
# An image of the test split.
LAST = {
    food101: "images/grilled_salmon/200.jpg", cub: "images/026.Bronzed_Cowbird/c.jpg", cars: "cars_test/00002.jpg",
    flowers: "jpg/image_00003.jpg",
}  # fmt: skip
EVERY = pytest.mark.parametrize("build", WRITE, ids=lambda build: build.__name__)


@EVERY
def test_a_published_layout_is_read(build: Build, tmp_path: Path) -> None:
    WRITE[build](tmp_path / "x")
    data: Dataset = build(tmp_path / "x", "test", 0)
    first, second = LABELS[build]
    assert {data.labels[0], data.labels[-1]} == {first, second}
    shades = {round(float(data[i].image.mean()) * 255): data[i].label for i in range(len(data))}
    assert shades == {0: first, 100: second}
    assert [data[i].label for i in data.indices(second.upper())] == [second]
    other: Dataset = build(tmp_path / "x", "train", 0)
    assert len(other) == 1 and other[0].label == second and round(float(other[0].image.mean()) * 255) == 50
    assert len({data.digest, other.digest}) == 2 and build(tmp_path / "x", "test", 0).digest == data.digest


@EVERY
def test_missing_files_are_named_in_one_line(build: Build, tmp_path: Path) -> None:
    root = tmp_path / "x"
    WRITE[build](root)
    for path, split, message in (
        (None, "test", "data.path is missing: give a folder of .* as published"),
        (tmp_path / "absent", "test", "no such folder; expected a folder of .* as published"),
        (root, "exam", "data.split=exam: allowed are train, "),
    ):
        with pytest.raises(UserError, match=message):
            build(path, split, 0)
    (root / LAST[build]).unlink()
    with pytest.raises(UserError, match=rf"data.path=.*x: .*{LAST[build]} does not exist, but is listed in its tables"):
        build(root, "test", 0)


@pytest.mark.parametrize(
    ("build", "table", "message"),
    [
        (food101, "meta/test.txt", ""), (cub, "images.txt", "1 a/b.jpg\nbird"), (cub, "classes.txt", ""),
        (cub, "image_class_labels.txt", "1 3"), (cub, "train_test_split.txt", "1 0"),
        (cars, "devkit/cars_meta.mat", ""),
        (cars, "cars_test_annos_withlabels.mat", "no Matlab file, but long enough to be looked at" * 9),
        (flowers, "imagelabels.mat", ""), (flowers, "setid.mat", "x"),
    ],
)  # fmt: skip
def test_a_broken_or_missing_table_is_named(build: Build, table: str, message: str, tmp_path: Path) -> None:
    root = tmp_path / "x"
    WRITE[build](root)
    (root / table).write_text(message)
    with pytest.raises(UserError, match="^data.path") as refused:
        build(root, "test", 0)
    assert "\n" not in str(refused.value)
    (root / table).unlink()
    error = rf"^data.path=.*: .*{Path(table).name}: No such file.*; expected .* as published"
    with pytest.raises(UserError, match=error):
        build(root, "test", 0)


def test_numbers_of_matlab_files_are_checked(tmp_path: Path) -> None:
    write_flowers(tmp_path)
    savemat(tmp_path / "setid.mat", {"trnid": np.array([4]), "tstid": np.array([0, 1])})
    for split, number in (("train", 4), ("test", 0)):
        with pytest.raises(UserError, match=rf"setid.mat: has the number {number}; allowed are 1 … 3"):
            flowers(tmp_path, split, 0)
    with pytest.raises(UserError, match="setid.mat: has no variable valid; expected"):
        flowers(tmp_path, "val", 0)


def test_annotations_of_cars_without_classes_are_refused(tmp_path: Path) -> None:
    write_cars(tmp_path)
    bare = np.array([("00001.jpg",), ("00002.jpg",)], dtype=[("fname", object)])
    savemat(tmp_path / "cars_test_annos_withlabels.mat", {"annotations": bare})
    with pytest.raises(UserError, match="its annotations have no class and fname"):
        cars(tmp_path, "test", 0)


def test_labels_of_test_images_of_cars_may_be_in_the_devkit(tmp_path: Path) -> None:
    write_cars(tmp_path)
    before = cars(tmp_path, "test", 0)
    table = "cars_test_annos_withlabels.mat"
    (tmp_path / table).rename(tmp_path / "devkit" / table)
    assert cars(tmp_path, "test", 0).digest == before.digest
