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

from classifier_lens.data.image_folder import check_head, decode
from classifier_lens.data.image_selection import check_choice, check_position, digest_of, shuffled
from classifier_lens.runner.configuration.value_ranges import Count, Seed
from classifier_lens.runner.types import Example, UnreadableImage, UserError, first_line, matching_rows

Picture = Mapping[str, Any]  # `bytes`, and where these are none, the `path` of the file


class HubPictures:
    """Rows of a data set as a `runner.types.Dataset` in the seed's order; nobody captioned them.

    key: what errors name; pictures: decoded when asked for; labels: the class of each; names: all classes; split: they
    are named after it and their position in it; kind: what decides the pictures.
    """

    def __init__(
        self, key: str, pictures: Sequence[Picture], labels: Sequence[str], names: Sequence[str], split: str, seed: int,
        kind: Sequence[object],
    ) -> None:  # fmt: skip
        self.labels: tuple[str, ...] = tuple(names)
        self._key, self._pictures, self._own, self._split = key, pictures, labels, split
        self._order = shuffled(len(labels), seed)
        self.digest = digest_of("hub", *kind, self._order, list(labels))

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, i: int) -> Example:
        """An image at its own size. Raises UnreadableImage for what `check_head` sees."""
        row = self._order[check_position(i, len(self))]
        key = f"{self._key}: picture {row}"
        try:
            source = content(self._pictures[row])
        except OSError as error:
            raise UnreadableImage(f"{key} cannot be read: {first_line(error)}") from error
        check_head(key, source)
        load, digest = partial(decode, key, source), sha256(source).hexdigest()
        return Example(f"{self._split}-{row:06d}", load, self._own[row], origin=digest)

    def rows(self, label: str) -> list[int]:
        """The positions of a class's pictures."""
        return matching_rows(self._key, label, [self._own[row] for row in self._order])

    def nearest(self, label: str) -> str | None:
        """None: the hub does not say which of its classes are alike."""
        return None

    def cluster(self, label: str) -> list[str]:
        """Empty, for the same reason."""
        return []


@dataclass(frozen=True)
class Table:
    """What is taken of a data set. classes: of each picture, a number where `names` says what it stands for; digest: of
    what decides the pictures."""

    pictures: Sequence[Picture]
    classes: Sequence[Any]
    names: Sequence[str] | None
    digest: str


def hub_pictures(
    name: str | None, config: str | None, revision: str | None, split: str, image: str, label: str, count: Count | None,
    seed: Seed,
) -> HubPictures:  # fmt: skip
    """Pictures of a data set and their classes.

    name: the hub's id, or a folder; config: of several; revision: a commit; split: as the data set calls it;
    image, label: columns; count: the first so many, streamed, None for all, which are fetched and kept. Raises
    UserError if the package, the data set, a split, a column or a class is not there.
    """
    if not name:
        raise UserError("data.name is missing: give a data set of the hub or a folder, e.g. data.name=ethz/food101")
    datasets, key, folder = _package(), f"data.name={name}", Path(name).expanduser()
    place = str(folder) if folder.is_dir() else name
    try:
        found = datasets.load_dataset(place, config, split=split, revision=revision, streaming=count is not None)
        table = _kept(found, image, label) if count is None else _streamed(found, image, label, count)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{key}: split {split} cannot be read: {first_line(error)}") from error
    labels = [_class(key, value, table.names) for value in table.classes]
    names = sorted(set(labels)) if table.names is None else table.names
    return HubPictures(key, table.pictures, labels, names, split, seed, [table.digest])


def _package() -> ModuleType:
    """The package `datasets`. Raises UserError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("data=hf: its package is not installed; pip install datasets") from error
    return datasets


def _streamed(found: Any, image: str, label: str, count: int) -> Table:
    """The first `count` rows. Raises UserError where there are fewer."""
    rows = list(islice(found.decode(False), count))
    if len(rows) < count:
        raise UserError(f"data.count={count}: allowed are 1 to {len(rows)}, or null for all")
    _check_columns(rows[0], image, label)
    contents = [content(row[image]) for row in rows]
    digest = digest_of([sha256(own).hexdigest() for own in contents])
    return Table([{"bytes": own} for own in contents], [row[label] for row in rows], _names(found, label), digest)


def _kept(found: Any, image: str, label: str) -> Table:
    """All rows; pictures stay on the disk."""
    _check_columns(found.column_names, image, label)
    pictures = found.select_columns([image]).with_format("arrow")
    return Table(_Rows(pictures, image), found.select_columns([label])[:][label], _names(found, label), _print(found))


def _print(found: Any) -> str:
    """The fingerprint that the package keeps a data set's files by."""
    return str(found._fingerprint)


def _check_columns(columns: Iterable[str], image: str, label: str) -> None:
    """Raise UserError unless there are columns of both names."""
    check_choice("data.image", image, columns)
    check_choice("data.label", label, columns)


def _names(found: Any, label: str) -> Sequence[str] | None:
    """What the numbers of a column of classes stand for, None where it holds words, or numbers without names."""
    return getattr((found.features or {}).get(label), "names", None)


def _class(key: str, value: Any, names: Sequence[str] | None) -> str:
    """A class by its number, or as it is written. Raises UserError where a picture has none."""
    if value is None or (names is not None and not 0 <= value < len(names)):
        raise UserError(f"{key}: the class {value} of a picture is none; choose a split whose labels are published")
    return str(value) if names is None else names[value]


class _Rows(Sequence[Picture]):
    """The pictures of a table, each read when it is asked for."""

    def __init__(self, table: Any, image: str) -> None:
        self._table, self._image = table, image

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: Any) -> Any:
        return self._table[i][self._image][0].as_py()


def content(picture: Any) -> bytes:
    """The bytes of a picture, from its file where it has none. Raises UserError for what is no picture."""
    if not isinstance(picture, Mapping) or not (picture.get("bytes") or picture.get("path")):
        raise UserError(f"data.image: the column holds no pictures but {type(picture).__name__}")
    if picture.get("bytes"):
        return bytes(picture["bytes"])
    with fsspec.open(picture["path"], "rb") as file:
        return bytes(file.read())
