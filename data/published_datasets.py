"""Data sets in their published layouts: Food-101, CUB-200-2011, Stanford Cars, Oxford Flowers-102."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision.datasets import Flowers102

from classifier_lens.data.image_folder import LabeledFiles, check_files_exist, check_folder
from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import OneOf, Seed
from classifier_lens.runner.files.text import read_lines
from classifier_lens.runner.types import UserError, first_line

SPLITS = ("train", "test")
Split = Annotated[str, OneOf(SPLITS)]

_FOOD101 = "Food-101 as published, with images/<class>/<number>.jpg and meta/<split>.txt"
_CUB = "CUB-200-2011 as published, with images/, images.txt, classes.txt and the other tables"
_CARS = "Stanford Cars as published, with cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat"
_FLOWERS = "Oxford Flowers-102 as published, with jpg/, imagelabels.mat and setid.mat"


def food101(path: str | Path | None, split: Split, seed: Seed) -> LabeledFiles:
    """Food-101; the class of a folder `grilled_salmon` is `grilled salmon`.

    path: the folder with images/ and meta/; split: train | test. Raises UserError if a file is missing.
    """
    folder = check_folder(path, _FOOD101)
    check_choice("data.split", split, SPLITS)
    names = _read_lines(folder, f"meta/{split}.txt", _FOOD101)
    files = [(folder / "images" / f"{name}.jpg", name.split("/")[0].replace("_", " ")) for name in names]
    return _labeled_files(files, sorted({label for _, label in files}), seed, "food101", folder)


def cub(path: str | Path | None, split: Split, seed: Seed) -> LabeledFiles:
    """CUB-200-2011; the class of `001.Black_footed_Albatross` is `Black footed Albatross`.

    path: the folder with images/, images.txt, image_class_labels.txt, train_test_split.txt and classes.txt;
    split: train | test. Raises UserError if a file is missing.
    """
    folder = check_folder(path, _CUB)
    split_flag = {"train": "1", "test": "0"}[check_choice("data.split", split, SPLITS)]
    images = _read_numbered_lines(folder, "images.txt", _CUB)
    labels = _read_numbered_lines(folder, "image_class_labels.txt", _CUB)
    split_flags = _read_numbered_lines(folder, "train_test_split.txt", _CUB)
    classes = _read_numbered_lines(folder, "classes.txt", _CUB)
    names = {number: name.split(".", 1)[-1].replace("_", " ") for number, name in classes.items()}
    try:
        files = [(folder / "images" / images[k], names[labels[k]]) for k in images if split_flags[k] == split_flag]
    except KeyError as error:
        raise UserError(f"data.path={folder}: number {error} is missing in its tables; expected {_CUB}") from error
    return _labeled_files(files, list(names.values()), seed, "cub", folder)


def cars(path: str | Path | None, split: Split, seed: Seed) -> LabeledFiles:
    """Stanford Cars.

    path: the folder with cars_train/, cars_test/ and devkit/; cars_test_annos_withlabels.mat is there or in devkit/;
    split: train | test. Raises UserError if a file is missing.
    """
    folder = check_folder(path, _CARS)
    check_choice("data.split", split, SPLITS)
    table = "devkit/cars_train_annos.mat"
    if split == "test":
        table = "cars_test_annos_withlabels.mat"
        table = table if (folder / table).is_file() else f"devkit/{table}"
    names = [str(name) for name in _read_matlab_vector(folder, "devkit/cars_meta.mat", "class_names", _CARS)]
    rows = _read_matlab_vector(folder, table, "annotations", _CARS)
    if not {"class", "fname"} <= set(rows.dtype.names or ()):
        raise UserError(f"data.path={folder}: {table}: its annotations have no class and fname; expected {_CARS}")
    numbers = _check_range(folder / table, [int(row["class"]) for row in rows], len(names))
    files = [(folder / f"cars_{split}" / str(row["fname"]), names[k - 1]) for row, k in zip(rows, numbers, strict=True)]
    return _labeled_files(files, names, seed, "cars", folder)


def flowers(
    path: str | Path | None, split: Annotated[str, OneOf(("train", "val", "test"))], seed: Seed
) -> LabeledFiles:
    """Oxford Flowers-102, with the class names of torchvision.

    path: the folder with jpg/, imagelabels.mat and setid.mat; split: train | val | test. Raises UserError if a file is
    missing.
    """
    folder = check_folder(path, _FLOWERS)
    columns = {"train": "trnid", "val": "valid", "test": "tstid"}
    column = columns[check_choice("data.split", split, columns)]
    names: Sequence[str] = Flowers102.classes
    labels = _read_matlab_vector(folder, "imagelabels.mat", "labels", _FLOWERS)
    rows = _check_range(folder / "setid.mat", _read_matlab_vector(folder, "setid.mat", column, _FLOWERS), len(labels))
    numbers = _check_range(folder / "imagelabels.mat", [labels[row - 1] for row in rows], len(names))
    files = [(folder / "jpg" / f"image_{row:05d}.jpg", names[k - 1]) for row, k in zip(rows, numbers, strict=True)]
    return _labeled_files(files, names, seed, "flowers", folder)


def _read_lines(folder: Path, name: str, wanted: str) -> list[str]:
    """The non-empty lines of a text file. Raises UserError if it cannot be read."""
    return read_lines(f"data.path={folder}: {name}", folder / name, wanted)


def _read_numbered_lines(folder: Path, name: str, wanted: str) -> dict[str, str]:
    """The texts of lines `<number> <text>` by number. Raises UserError for other lines."""
    texts = {}
    for line in _read_lines(folder, name, wanted):
        number, _, text = line.partition(" ")
        if not number.isdigit() or not text:
            raise UserError(f"data.path={folder}: {name}: the line '{line}' is not a number and a text")
        texts[number] = text.strip()
    return texts


def _read_matlab_vector(folder: Path, name: str, variable: str, wanted: str) -> Any:
    """A vector of numbers, texts or records in a Matlab file. Raises UserError if it is missing."""
    try:
        with (folder / name).open("rb") as file:
            return np.atleast_1d(loadmat(file, squeeze_me=True)[variable])
    except OSError as error:
        raise UserError(f"data.path={folder}: {name}: {error.strerror}; expected {wanted}") from error
    except (MatReadError, IndexError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"data.path={folder}: {name}: cannot be read ({first_line(error)})") from error
    except KeyError as error:
        raise UserError(f"data.path={folder}: {name}: has no variable {variable}; expected {wanted}") from error


def _check_range(file: Path, numbers: Sequence[int], count: int) -> list[int]:
    """The numbers as a list. Raises UserError for numbers outside 1 … count."""
    if invalid := [int(number) for number in numbers if not 1 <= number <= count]:
        raise UserError(f"data.path: {file}: has the number {invalid[0]}; allowed are 1 … {count}")
    return [int(number) for number in numbers]


def _labeled_files(
    files: Sequence[tuple[Path, str]], labels: Sequence[str], seed: int, kind: str, folder: Path
) -> LabeledFiles:
    """The data set. Raises UserError if an image is missing, or if there are none."""
    if not files:
        raise UserError(f"data.path={folder}: its tables list no image of this split")
    check_files_exist(folder, files, "its tables")
    return LabeledFiles(files, labels, seed, [kind, [label for _, label in files]])
