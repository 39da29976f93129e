"""CIFAR-10, from torchvision's folder or from zip files of JPEG files."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from classifier_lens.data.array_pickle import unpickle_arrays
from classifier_lens.data.digests import hash_values
from classifier_lens.data.image_selection import check_choice, check_count, check_index, shuffled_indices
from classifier_lens.data.images import DECODE_ERRORS
from classifier_lens.data.similar_classes import PairedClasses
from classifier_lens.runner.configuration.value_ranges import Count, OneOf, Seed
from classifier_lens.runner.types import Example, UserError, first_line

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Classes that look similar or have similar backgrounds.
PAIRS = (("airplane", "ship"), ("automobile", "truck"), ("bird", "frog"), ("cat", "dog"), ("deer", "horse"))


def read_split(path: str | Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    """All images of a split (n, 3, 32, 32) in uint8, their labels (n,), and their names.

    path: a folder with `cifar-10-batches-py` as unpacked by torchvision, or with `train.zip` and `test.zip` of files
    `<split>/<class>/<number>.jpg`. Raises FileNotFoundError if it has neither.
    """
    path = Path(path)
    if (folder := path / "cifar-10-batches-py").is_dir():
        return _load_batches(folder, split)
    if (archive := path / f"{split}.zip").is_file():
        return _load_zip(archive, split)
    raise FileNotFoundError(f"data.path={path}: has neither cifar-10-batches-py/ (torchvision) nor {split}.zip")


def _load_batches(folder: Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    files = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    batches = [_load_batch(folder / name) for name in files]
    images = torch.from_numpy(np.concatenate([data for data, _ in batches]).reshape(-1, 3, 32, 32))
    labels = torch.tensor([label for _, batch_labels in batches for label in batch_labels])
    return images, labels, [f"{split}-{i:05d}" for i in range(len(labels))]


def _load_batch(path: Path) -> tuple[np.ndarray, list[int]]:
    """Images (n, 3072) in uint8 and their labels. Raises ValueError or UnpicklingError for another content."""
    try:
        batch = unpickle_arrays(path.read_bytes())
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(f"{path.name} {error}") from error
    data, labels = (batch.get(key) if isinstance(batch, dict) else None for key in ("data", "labels"))
    size = 3 * 32 * 32
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == size):
        raise ValueError(f"{path.name} has no `data` of {size} bytes per image")
    if not (isinstance(labels, list) and len(labels) == len(data) and set(labels) <= set(range(len(CLASSES)))):
        raise ValueError(f"{path.name} has no `labels` from 0 to {len(CLASSES) - 1}, one per image")
    return data, labels


def _load_zip(archive: Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    images, labels, names = [], [], []
    with zipfile.ZipFile(archive) as files:
        for entry in sorted(n for n in files.namelist() if n.endswith(".jpg") and n.startswith(f"{split}/")):
            _, label, file = entry.split("/")
            image = Image.open(io.BytesIO(files.read(entry)), formats=["JPEG"]).convert("RGB")
            images.append(np.asarray(image).transpose(2, 0, 1))
            labels.append(CLASSES.index(label))
            names.append(f"{split}-{label}-{Path(file).stem}")
    return torch.from_numpy(np.stack(images)), torch.tensor(labels), names


class Cifar10(PairedClasses):
    """CIFAR-10 as a `runner.types.Dataset` without captions.

    Args:
        path: see `read_split`.
        split: train | test.
        count: number of images, None for all.
        seed: of their order.
    """

    labels: tuple[str, ...] = CLASSES
    pairs = PAIRS

    def __init__(
        self, path: str | Path, split: Annotated[str, OneOf(("train", "test"))], count: Count | None, seed: Seed
    ) -> None:
        check_choice("data.split", split, ("train", "test"))
        try:
            self._images, self._labels, self._names = read_split(Path(path).expanduser(), split)
        except FileNotFoundError as error:
            raise UserError(str(error)) from error
        except (*DECODE_ERRORS, pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, zlib.error) as error:
            raise UserError(f"data.path={path}: cannot read the {split} split: {first_line(error)}") from error
        size = len(self._labels)
        self._order = shuffled_indices(size, seed)[: check_count(count, size)]
        content = hashlib.sha256(self._images.numpy().tobytes()).hexdigest()
        self.digest = hash_values("cifar10", content, self._labels.tolist(), self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: int) -> Example:
        """Image `i` in the order of the seed, (3, 32, 32), with the name of its file."""
        row = self._order[check_index(i, len(self))]
        return Example(self._names[row], lambda: self._images[row].float() / 255, CLASSES[int(self._labels[row])])

    def indices(self, label: str) -> list[int]:
        """The positions of the images of a class."""
        return [i for i, row in enumerate(self._order) if CLASSES[int(self._labels[row])] == label.lower()]
