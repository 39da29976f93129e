"""Data sets of the Hugging Face hub, streamed or downloaded, and folders in the hub's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec

from classifier_lens.data.digests import hash_values
from classifier_lens.data.image_selection import check_choice, check_index, shuffled_indices
from classifier_lens.data.images import check_image_header, decode_image
from classifier_lens.data.similar_classes import UnknownSimilarity
from classifier_lens.runner.configuration.value_ranges import Count, Seed
from classifier_lens.runner.types import Example, UnreadableImageError, UserError, first_line, matching_indices

HubImage = Mapping[str, Any]  # `bytes`, or if these are None, the `path` of the file


class HubDataset(UnknownSimilarity):
    """Rows of a data set as a `runner.types.Dataset` in the order of the seed, without captions.

    Args:
        key: prefix of error messages.
        images: decoded when they are accessed.
        labels: the class name of each image.
        names: all class names.
        split: part of the names of the images.
        kind: values that the digest covers.
    """

    def __init__(
        self, key: str, images: Sequence[HubImage], labels: Sequence[str], names: Sequence[str], split: str, seed: int,
        kind: Sequence[object],
    ) -> None:  # fmt: skip
        self.labels: tuple[str, ...] = tuple(names)
        self._key, self._images, self._image_labels, self._split = key, images, labels, split
        self._order = shuffled_indices(len(labels), seed)
        self.digest = hash_values("hub", *kind, self._order, list(labels))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: int) -> Example:
        """An image at its own size. Raises UnreadableImageError in the cases of `check_image_header`."""
        row = self._order[check_index(i, len(self))]
        key = f"{self._key}: image {row}"
        try:
            source = read_image_bytes(self._images[row])
        except OSError as error:
            raise UnreadableImageError(f"{key} cannot be read: {first_line(error)}") from error
        check_image_header(key, source)
        load, digest = partial(decode_image, key, source), sha256(source).hexdigest()
        return Example(f"{self._split}-{row:06d}", load, self._image_labels[row], origin=digest)

    def indices(self, label: str) -> list[int]:
        """The positions of the images of a class."""
        return matching_indices(self._key, label, [self._image_labels[row] for row in self._order])


@dataclass(frozen=True)
class HubTable:
    """Images and classes of a data set.

    Args:
        classes: of each image, an index into `names`, or the class itself if there are no names.
        digest: of the images.
    """

    images: Sequence[HubImage]
    classes: Sequence[Any]
    names: Sequence[str] | None
    digest: str


def load_hub_dataset(
    name: str | None,
    config_name: str | None,
    revision: str | None,
    split: str,
    image_column: str,
    label_column: str,
    count: Count | None,
    seed: Seed,
) -> HubDataset:
    """The images and classes of a data set.

    Args:
        name: id of the hub, or a folder.
        config_name: configuration of the data set, if it has several.
        revision: a commit.
        split: name of the split.
        image_column, label_column: names of the columns.
        count: number of images, which are streamed; None for all, which are downloaded.

    Raises:
        UserError: the package, the data set, a split, a column or a class is missing.
    """
    if not name:
        raise UserError("data.name is missing: give a data set of the hub or a folder, e.g. data.name=ethz/food101")
    datasets, key, folder = _datasets_package(), f"data.name={name}", Path(name).expanduser()
    path = str(folder) if folder.is_dir() else name
    try:
        dataset = datasets.load_dataset(path, config_name, split=split, revision=revision, streaming=count is not None)
        table = (
            _downloaded_table(dataset, image_column, label_column)
            if count is None
            else _streamed_table(dataset, image_column, label_column, count)
        )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{key}: split {split} cannot be read: {first_line(error)}") from error
    labels = [_class_name(key, value, table.names) for value in table.classes]
    names = sorted(set(labels)) if table.names is None else table.names
    return HubDataset(key, table.images, labels, names, split, seed, [table.digest])


def _datasets_package() -> ModuleType:
    """The package `datasets`. Raises UserError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("data=hf: its package is not installed; pip install datasets") from error
    return datasets


def _streamed_table(dataset: Any, image_column: str, label_column: str, count: int) -> HubTable:
    """The first `count` rows. Raises UserError if there are fewer."""
    rows = list(islice(dataset.decode(False), count))
    if len(rows) < count:
        raise UserError(f"data.count={count}: allowed are 1 to {len(rows)}, or null for all")
    _check_columns(rows[0], image_column, label_column)
    contents = [read_image_bytes(row[image_column]) for row in rows]
    digest = hash_values([sha256(content).hexdigest() for content in contents])
    images, classes = [{"bytes": content} for content in contents], [row[label_column] for row in rows]
    return HubTable(images, classes, _class_names(dataset, label_column), digest)


def _downloaded_table(dataset: Any, image_column: str, label_column: str) -> HubTable:
    """All rows; the images remain on disk."""
    _check_columns(dataset.column_names, image_column, label_column)
    images = _ImageColumn(dataset.select_columns([image_column]).with_format("arrow"), image_column)
    classes = dataset.select_columns([label_column])[:][label_column]
    return HubTable(images, classes, _class_names(dataset, label_column), str(dataset._fingerprint))


def _check_columns(columns: Iterable[str], image_column: str, label_column: str) -> None:
    """Raises UserError if one of the columns is missing."""
    check_choice("data.image_column", image_column, columns)
    check_choice("data.label_column", label_column, columns)


def _class_names(dataset: Any, label_column: str) -> Sequence[str] | None:
    """The names of the numbers in a column of classes; None if it contains names, or numbers without names."""
    return getattr((dataset.features or {}).get(label_column), "names", None)


def _class_name(key: str, value: Any, names: Sequence[str] | None) -> str:
    """The name of a class. Raises UserError for an image without a class."""
    if value is None or (names is not None and not 0 <= value < len(names)):
        raise UserError(f"{key}: an image has the class {value}; choose a split whose labels are published")
    return str(value) if names is None else names[value]


class _ImageColumn(Sequence[HubImage]):
    """The images of a table, each read from disk when it is accessed."""

    def __init__(self, table: Any, column: str) -> None:
        self._table, self._column = table, column

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: Any) -> Any:
        return self._table[i][self._column][0].as_py()


def read_image_bytes(image: Any) -> bytes:
    """The bytes of an image, or the content of its file. Raises UserError for other values."""
    if not isinstance(image, Mapping) or not (image.get("bytes") or image.get("path")):
        raise UserError(f"data.image_column: the column contains {type(image).__name__} instead of images")
    if image.get("bytes"):
        return bytes(image["bytes"])
    with fsspec.open(image["path"], "rb") as file:
        return bytes(file.read())
