"""Photographs in the layouts in which they are published: Food-101, CUB-200-2011, Stanford Cars, Flowers-102."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision.datasets import Flowers102

from classifier_lens.data.image_folder import LabeledFiles, check_folder
from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import OneOf, Seed
from classifier_lens.runner.files.text import read_lines
from classifier_lens.runner.types import UserError, first_line

SPLITS = ("train", "test")
Split = Annotated[str, OneOf(SPLITS)]

_FOOD101 = "Food-101 as it is published, with images/<class>/<number>.jpg and meta/<split>.txt"
_CUB = "CUB-200-2011 as it is published, with images/, images.txt, classes.txt and what belongs to them"
_CARS = "Stanford Cars as it is published, with cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat"
_FLOWERS = "Oxford Flowers-102 as it is published, with jpg/, imagelabels.mat and setid.mat"


def food101(path: str | Path | None, split: Split, seed: Seed) -> LabeledFiles:
    """Food-101; folders `grilled_salmon` are the class `grilled salmon`.

    path: the folder with images/ and meta/; split: train | test. Raises UserError for what is not there.
    """
    folder = check_folder(path, _FOOD101)
    check_choice("data.split", split, SPLITS)
    pictures = _lines(folder, f"meta/{split}.txt", _FOOD101)
    files = [(folder / "images" / f"{name}.jpg", name.split("/")[0].replace("_", " ")) for name in pictures]
    return _labelled(files, sorted({label for _, label in files}), seed, "food101", folder)


def cub(path: str | Path | None, split: Split, seed: Seed) -> LabeledFiles:
    """CUB-200-2011; `001.Black_footed_Albatross` is the class `Black footed Albatross`.

    path: the folder with images/, images.txt, image_class_labels.txt, train_test_split.txt and classes.txt;
    split: train | test. Raises UserError for what is not there.
    """
    folder = check_folder(path, _CUB)
    mark = {"train": "1", "test": "0"}[check_choice("data.split", split, SPLITS)]
    pictures, labels = _numbered(folder, "images.txt", _CUB), _numbered(folder, "image_class_labels.txt", _CUB)
    training = _numbered(folder, "train_test_split.txt", _CUB)
    names = {k: name.split(".", 1)[-1].replace("_", " ") for k, name in _numbered(folder, "classes.txt", _CUB).items()}
    try:
        files = [(folder / "images" / pictures[k], names[labels[k]]) for k in pictures if training[k] == mark]
    except KeyError as error:
        raise UserError(f"data.path={folder}: its tables say nothing of number {error}; wanted is {_CUB}") from error
    return _labelled(files, list(names.values()), seed, "cub", folder)


def cars(path: str | Path | None, split: Split, seed: Seed) -> LabeledFiles:
    """Stanford Cars.

    path: the folder with cars_train/, cars_test/ and devkit/; cars_test_annos_withlabels.mat lies beside or in devkit/;
    split: train | test. Raises UserError for what is not there.
    """
    folder = check_folder(path, _CARS)
    check_choice("data.split", split, SPLITS)
    table = "devkit/cars_train_annos.mat"
    if split == "test":
        table = "cars_test_annos_withlabels.mat"
        table = table if (folder / table).is_file() else f"devkit/{table}"
    names = [str(name) for name in _matrix(folder, "devkit/cars_meta.mat", "class_names", _CARS)]
    rows = _matrix(folder, table, "annotations", _CARS)
    if not {"class", "fname"} <= set(rows.dtype.names or ()):
        raise UserError(f"data.path={folder}: {table}: its annotations have no class and fname; wanted is {_CARS}")
    numbers = _within(folder / table, [int(row["class"]) for row in rows], len(names))
    files = [(folder / f"cars_{split}" / str(row["fname"]), names[k - 1]) for row, k in zip(rows, numbers, strict=True)]
    return _labelled(files, names, seed, "cars", folder)


def flowers(
    path: str | Path | None, split: Annotated[str, OneOf(("train", "val", "test"))], seed: Seed
) -> LabeledFiles:
    """Oxford Flowers-102, whose names are torchvision's.

    path: the folder with jpg/, imagelabels.mat and setid.mat; split: train | val | test. Raises UserError for what is
    not there.
    """
    folder = check_folder(path, _FLOWERS)
    columns = {"train": "trnid", "val": "valid", "test": "tstid"}
    column = columns[check_choice("data.split", split, columns)]
    names: Sequence[str] = Flowers102.classes
    labels = _matrix(folder, "imagelabels.mat", "labels", _FLOWERS)
    rows = _within(folder / "setid.mat", _matrix(folder, "setid.mat", column, _FLOWERS), len(labels))
    numbers = _within(folder / "imagelabels.mat", [labels[row - 1] for row in rows], len(names))
    files = [(folder / "jpg" / f"image_{row:05d}.jpg", names[k - 1]) for row, k in zip(rows, numbers, strict=True)]
    return _labelled(files, names, seed, "flowers", folder)


# --- tables --------------------------------------------------------------------------------------------------


def _lines(folder: Path, name: str, wanted: str) -> list[str]:
    """The lines of a text file that are not empty. Raises UserError if it cannot be read."""
    return read_lines(f"data.path={folder}: {name}", folder / name, wanted)


def _numbered(folder: Path, name: str, wanted: str) -> dict[str, str]:
    """What a text file says of each number, in lines `<number> <words>`. Raises UserError for other lines."""
    found = {}
    for line in _lines(folder, name, wanted):
        number, _, said = line.partition(" ")
        if not number.isdigit() or not said:
            raise UserError(f"data.path={folder}: {name}: '{line}' is no number and what it stands for")
        found[number] = said.strip()
    return found


def _matrix(folder: Path, name: str, variable: str, wanted: str) -> Any:
    """A vector of a Matlab file, of numbers, words or records. Raises UserError if it is not there."""
    try:
        with (folder / name).open("rb") as file:
            return np.atleast_1d(loadmat(file, squeeze_me=True)[variable])
    except OSError as error:
        raise UserError(f"data.path={folder}: {name}: {error.strerror}; wanted is {wanted}") from error
    except (MatReadError, IndexError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"data.path={folder}: {name}: cannot be read ({first_line(error)})") from error
    except KeyError as error:
        raise UserError(f"data.path={folder}: {name}: has no variable {variable}; wanted is {wanted}") from error


def _within(file: Path, numbers: Sequence[int], count: int) -> list[int]:
    """The numbers, if all are 1 … count. Raises UserError for others."""
    if wrong := [int(number) for number in numbers if not 1 <= number <= count]:
        raise UserError(f"data.path: {file}: has the number {wrong[0]}; allowed are 1 … {count}")
    return [int(number) for number in numbers]


def _labelled(
    files: Sequence[tuple[Path, str]], labels: Sequence[str], seed: int, kind: str, folder: Path
) -> LabeledFiles:
    """The data set. Raises UserError if a picture is not there, or none is named."""
    if not files:
        raise UserError(f"data.path={folder}: its tables name no picture of this split")
    if missing := next((file for file, _ in files if not file.is_file()), None):
        raise UserError(f"data.path={folder}: {missing.relative_to(folder)} is not there, which its tables name")
    return LabeledFiles(files, labels, seed, [kind, [label for _, label in files]])
