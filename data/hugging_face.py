"""Data sets of the Hugging Face hub by name, streamed or kept, and folders in the hub's layout."""

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

from classifier_lens.data.image_folder import check_image_header, decode_image
from classifier_lens.data.image_selection import check_choice, check_index, hash_values, shuffled_indices
from classifier_lens.runner.configuration.value_ranges import Count, Seed
from classifier_lens.runner.types import Example, UnreadableImageError, UserError, first_line, matching_indices

HubImage = Mapping[str, Any]  # `bytes`, and where these are none, the `path` of the file


class HubDataset:
    """Rows of a data set as a `runner.types.Dataset` in the seed's order; nobody captioned them.

    key: what errors name; images: decoded when asked for; labels: the class of each; names: all classes; split: they
    are named after it and their position in it; kind: what decides the pictures.
    """

    def __init__(
        self, key: str, images: Sequence[HubImage], labels: Sequence[str], names: Sequence[str], split: str, seed: int,
        kind: Sequence[object],
    ) -> None:  # fmt: skip
        self.labels: tuple[str, ...] = tuple(names)
        self._key, self._pictures, self._own, self._split = key, images, labels, split
        self._order = shuffled_indices(len(labels), seed)
        self.digest = hash_values("hub", *kind, self._order, list(labels))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: int) -> Example:
        """An image at its own size. Raises UnreadableImage for what `check_image_header` sees."""
        row = self._order[check_index(i, len(self))]
        key = f"{self._key}: picture {row}"
        try:
            source = read_image_bytes(self._pictures[row])
        except OSError as error:
            raise UnreadableImageError(f"{key} cannot be read: {first_line(error)}") from error
        check_image_header(key, source)
        load, digest = partial(decode_image, key, source), sha256(source).hexdigest()
        return Example(f"{self._split}-{row:06d}", load, self._own[row], origin=digest)

    def indices(self, label: str) -> list[int]:
        """The positions of a class's pictures."""
        return matching_indices(self._key, label, [self._own[row] for row in self._order])

    def nearest_class(self, label: str) -> str | None:
        """None: the hub does not say which of its classes are alike."""
        return None

    def similar_classes(self, label: str) -> list[str]:
        """Empty, for the same reason."""
        return []


@dataclass(frozen=True)
class HubTable:
    """What is taken of a data set. classes: of each picture, a number where `names` says what it stands for; digest: of
    what decides the pictures."""

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
    """Pictures of a data set and their classes.

    name: the hub's id, or a folder; config_name: of several; revision: a commit; split: as the data set calls it;
    image_column, label_column: columns; count: the first so many, streamed, None for all, which are fetched and kept.
    Raises UserError if the package, the data set, a split, a column or a class is not there."""
    if not name:
        raise UserError("data.name is missing: give a data set of the hub or a folder, e.g. data.name=ethz/food101")
    datasets, key, folder = _package(), f"data.name={name}", Path(name).expanduser()
    place = str(folder) if folder.is_dir() else name
    try:
        found = datasets.load_dataset(place, config_name, split=split, revision=revision, streaming=count is not None)
        table = (
            _kept(found, image_column, label_column)
            if count is None
            else _streamed(found, image_column, label_column, count)
        )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{key}: split {split} cannot be read: {first_line(error)}") from error
    labels = [_class(key, value, table.names) for value in table.classes]
    names = sorted(set(labels)) if table.names is None else table.names
    return HubDataset(key, table.images, labels, names, split, seed, [table.digest])


def _package() -> ModuleType:
    """The package `datasets`. Raises UserError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("data=hf: its package is not installed; pip install datasets") from error
    return datasets


def _streamed(found: Any, image: str, label: str, count: int) -> HubTable:
    """The first `count` rows. Raises UserError where there are fewer."""
    rows = list(islice(found.decode(False), count))
    if len(rows) < count:
        raise UserError(f"data.count={count}: allowed are 1 to {len(rows)}, or null for all")
    _check_columns(rows[0], image, label)
    contents = [read_image_bytes(row[image]) for row in rows]
    digest = hash_values([sha256(own).hexdigest() for own in contents])
    return HubTable([{"bytes": own} for own in contents], [row[label] for row in rows], _names(found, label), digest)


def _kept(found: Any, image: str, label: str) -> HubTable:
    """All rows; pictures stay on the disk."""
    _check_columns(found.column_names, image, label)
    pictures = found.select_columns([image]).with_format("arrow")
    return HubTable(
        _Rows(pictures, image), found.select_columns([label])[:][label], _names(found, label), _print(found)
    )


def _print(found: Any) -> str:
    """The fingerprint that the package keeps a data set's files by."""
    return str(found._fingerprint)


def _check_columns(columns: Iterable[str], image: str, label: str) -> None:
    """Raise UserError unless there are columns of both names."""
    check_choice("data.image_column", image, columns)
    check_choice("data.label_column", label, columns)


def _names(found: Any, label: str) -> Sequence[str] | None:
    """What the numbers of a column of classes stand for, None where it holds words, or numbers without names."""
    return getattr((found.features or {}).get(label), "names", None)


def _class(key: str, value: Any, names: Sequence[str] | None) -> str:
    """A class by its number, or as it is written. Raises UserError where a picture has none."""
    if value is None or (names is not None and not 0 <= value < len(names)):
        raise UserError(f"{key}: the class {value} of a picture is none; choose a split whose labels are published")
    return str(value) if names is None else names[value]


class _Rows(Sequence[HubImage]):
    """The pictures of a table, each read when it is asked for."""

    def __init__(self, table: Any, image: str) -> None:
        self._table, self._image = table, image

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: Any) -> Any:
        return self._table[i][self._image][0].as_py()


def read_image_bytes(picture: Any) -> bytes:
    """The bytes of a picture, from its file where it has none. Raises UserError for what is no picture."""
    if not isinstance(picture, Mapping) or not (picture.get("bytes") or picture.get("path")):
        raise UserError(f"data.image_column: the column holds no pictures but {type(picture).__name__}")
    if picture.get("bytes"):
        return bytes(picture["bytes"])
    with fsspec.open(picture["path"], "rb") as file:
        return bytes(file.read())
