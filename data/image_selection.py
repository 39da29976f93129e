"""Which pictures of a data set a run takes, and the checks of the keys that say so."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.types import Example, UnreadableImageError, UserError, matching_names


def check_choice(key: str, value: str, allowed: Iterable[str]) -> str:
    """The value, if it is one of `allowed`. Raises UserError naming the configuration's `key` otherwise."""
    choices = tuple(allowed)
    if value not in choices:
        raise UserError(f"{key}={value}: allowed are {', '.join(choices)}")
    return value


def check_count(count: int | None, size: int) -> int:
    """How many pictures of `size` are taken; None takes all. Raises UserError outside 1 .. size."""
    if count is None:
        return size
    if not 1 <= count <= size:
        raise UserError(f"data.count={count}: allowed are 1 to {size}, or null for all")
    return count


def check_seed(seed: int) -> int:
    """The seed, if it is not negative. Raises UserError otherwise."""
    if seed < 0:
        raise UserError(f"seed={seed}: allowed are 0 and above")
    return seed


def check_index(i: int, size: int) -> int:
    """The position, if a picture stands there. Raises IndexError otherwise, which also ends a `for` loop."""
    if not 0 <= i < size:
        raise IndexError(f"picture {i} of {size}")
    return i


def hash_values(*parts: object) -> str:
    """SHA-256 of everything that decides a data set's pictures (by `repr`)."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


# Files are read for a digest as long as they are so many at most and hold so many bytes together; that takes a tenth of
# a second from a local disk. Of more, sizes and times of change are taken.
MAX_HASHED_FILES, MAX_HASHED_BYTES = 2_000, 64 * 2**20


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 of what files hold, in their order, whatever they are called; of large data sets (see `MAX_HASHED_BYTES`)
    of their sizes and times of change instead. Raises OSError for one that cannot be read."""
    stats = [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, files)]
    if len(files) > MAX_HASHED_FILES or sum(size for size, _ in stats) > MAX_HASHED_BYTES:
        return hash_values("sizes and times", stats)
    return hash_values("contents", [hash_file(file) for file in files])


def hash_file(file: Path) -> str:
    """SHA-256 of what a file holds. Raises OSError if it cannot be read."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def hash_image(image: Float[Tensor, "c h w"]) -> str:
    """SHA-256 of a picture in [0, 1] as a file of 8 bits would hold it, and of its shape."""
    pixels = (image.detach() * 255).round().clamp(0, 255).byte().cpu().contiguous()
    return hash_values(tuple(image.shape), hashlib.sha256(pixels.numpy().tobytes()).hexdigest())


def hash_example(example: Example) -> str:
    """The digest of what an example's image follows from: its file or what else decides it, so that it need not be
    decoded, or its pixels. Raises UnreadableImage."""
    if isinstance(example.origin, Path):
        try:
            return hash_file(example.origin)
        except OSError as error:
            raise UnreadableImageError(f"data.path={example.origin}: cannot be read ({error.strerror})") from error
    return hash_image(example.image) if example.origin is None else hash_values(example.origin)


class HashedFiles:
    """Files on which results depend and of which no problem tells."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = list(files)

    @property
    def digest(self) -> str:
        """Of what they hold. Raises OSError if one cannot be read."""
        return hash_files(self._files)


def shuffled_indices(size: int, seed: int) -> list[int]:
    """The positions 0 .. size - 1 in an order that depends on `seed` alone."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(check_seed(seed))).tolist()


class Subset:
    """Some pictures of a data set as a `runner.types.Dataset`.

    positions: of these pictures, in the order in which they are wanted; labels: their classes.
    """

    def __init__(self, dataset: Dataset, positions: Sequence[int], labels: Sequence[str]) -> None:
        self.labels: tuple[str, ...] = tuple(labels)
        self._dataset, self._positions = dataset, positions

    @cached_property
    def digest(self) -> str:
        """Of the data set's and the positions; taken when it is asked for, as it may read all files."""
        return hash_values("selected", self._dataset.digest, list(self._positions))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: int) -> Example:
        return self._dataset[self._positions[check_index(i, len(self))]]

    def indices(self, label: str) -> list[int]:
        """The positions of a class's pictures among those selected."""
        own = set(self._dataset.indices(label))
        return [i for i, position in enumerate(self._positions) if position in own]

    def nearest_class(self, label: str) -> str | None:
        """As the whole data set says."""
        return self._dataset.nearest_class(label)

    def similar_classes(self, label: str) -> list[str]:
        """As the whole data set says."""
        return self._dataset.similar_classes(label)


class CenterCropped(Subset):
    """The images of a data set, of each the central square whose side is `share` of the shorter side."""

    def __init__(self, dataset: Dataset, share: float) -> None:
        super().__init__(dataset, range(len(dataset)), dataset.labels)
        self.share = share

    @cached_property
    def digest(self) -> str:
        return hash_values("centered", self._dataset.digest, self.share)

    def __getitem__(self, i: int) -> Example:
        example = super().__getitem__(i)
        return replace(example, load=lambda: _center(example.image, self.share))


def _center(image: Float[Tensor, "3 h w"], share: float) -> Float[Tensor, "3 s s"]:
    """The central square whose side is `share` of the shorter side."""
    height, width = image.shape[-2:]
    side = round(share * min(height, width))
    top, left = (height - side) // 2, (width - side) // 2
    return image[:, top : top + side, left : left + side]


def select_images(
    dataset: Dataset, classes: Sequence[str] | None, indices: Sequence[int] | None, center_crop: float = 1.0
) -> Dataset:
    """The pictures of some classes, those at some positions, or with both those that are both; all for None and None.

    classes: names, letter case aside, whose pictures come in the data set's order; indices: positions in the seed's
    order, from 0, which is then theirs; center_crop: the side of the central square that is kept of an image, as a
    share of its shorter side, 1 for the whole image. Raises UserError for a class that has no picture, a position that
    there is not or that is named twice, where nothing is left, and for a share outside (0, 1]."""
    if not 0 < center_crop <= 1:
        raise UserError(f"select.center_crop={center_crop}: allowed are shares above 0 and up to 1")
    some = _some(dataset, classes, indices)
    return some if center_crop == 1 else CenterCropped(some, center_crop)


def _some(dataset: Dataset, classes: Sequence[str] | None, indices: Sequence[int] | None) -> Dataset:
    """The pictures that are selected by class and position."""
    if classes is None and indices is None:
        return dataset
    for key, value, kind in (("classes", classes, "names as [a, b]"), ("indices", indices, "positions as [0, 7]")):
        if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
            raise UserError(f"select.{key}={value}: allowed are {kind}, or null for all")
    positions = list(range(len(dataset))) if indices is None else _check_indices(indices, len(dataset))
    labels = dataset.labels
    if classes is not None:
        own = {position for name in classes for position in _rows(dataset, name)}
        positions = [position for position in positions if position in own]
        wanted = {label for name in classes for label in matching_names(name, dataset.labels)}
        labels = tuple(label for label in dataset.labels if label in wanted)
    if not positions:
        raise UserError(f"select.classes={classes}, select.indices={indices}: no picture is left")
    return Subset(dataset, positions, labels)


def _rows(dataset: Dataset, name: str) -> list[int]:
    """The positions of a class's pictures. Raises UserError if there are none."""
    if not (rows := dataset.indices(name)):
        known = ", ".join(dataset.labels[:10])
        raise UserError(f"select.classes={name}: the data set has no such picture; its classes are {known} …")
    return rows


def _check_indices(indices: Sequence[int], size: int) -> list[int]:
    """The positions, if all are there and none is named twice. Raises UserError otherwise."""
    for i in indices:
        if not isinstance(i, int) or not 0 <= i < size:
            raise UserError(f"select.indices={i}: allowed are 0 to {size - 1}, positions in the seed's order")
    if twice := [i for i, count in Counter(indices).items() if count > 1]:
        raise UserError(f"select.indices={twice[0]}: is named twice; name it once")
    return list(indices)
