"""Selection of the images of a run from a data set, and checks of the configuration keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.digests import hash_values
from classifier_lens.data.images import center_crop
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.types import Example, UserError, matching_names


def check_choice(key: str, value: str, allowed: Iterable[str]) -> str:
    """The value itself. Raises UserError, which begins with `key`, if it is not one of `allowed`."""
    choices = tuple(allowed)
    if value not in choices:
        raise UserError(f"{key}={value}: allowed are {', '.join(choices)}")
    return value


def check_count(count: int | None, size: int) -> int:
    """The number of images, `size` for None. Raises UserError outside 1 .. size."""
    if count is None:
        return size
    if not 1 <= count <= size:
        raise UserError(f"data.count={count}: allowed are 1 to {size}, or null for all")
    return count


def check_seed(seed: int) -> int:
    """The seed itself. Raises UserError if it is negative."""
    if seed < 0:
        raise UserError(f"seed={seed}: allowed are 0 and above")
    return seed


def check_index(i: int, size: int) -> int:
    """The position itself. Raises IndexError, which also ends a `for` loop, outside 0 .. size - 1."""
    if not 0 <= i < size:
        raise IndexError(f"image {i} of {size}")
    return i


def shuffled_indices(size: int, seed: int) -> list[int]:
    """A random permutation of the positions 0 .. size - 1."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(check_seed(seed))).tolist()


class Subset:
    """Some images of a data set as a `runner.types.Dataset`.

    Args:
        positions: of the images, in their new order.
        labels: their classes.
    """

    def __init__(self, dataset: Dataset, positions: Sequence[int], labels: Sequence[str]) -> None:
        self.labels: tuple[str, ...] = tuple(labels)
        self._dataset, self._positions = dataset, positions

    @cached_property
    def digest(self) -> str:
        """Digest of the data set and the positions; computed at the first access, since it may read all files."""
        return hash_values("selected", self._dataset.digest, list(self._positions))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: int) -> Example:
        return self._dataset[self._positions[check_index(i, len(self))]]

    def indices(self, label: str) -> list[int]:
        """The positions of the images of a class."""
        positions_of_class = set(self._dataset.indices(label))
        return [i for i, position in enumerate(self._positions) if position in positions_of_class]

    def nearest_class(self, label: str) -> str | None:
        """The nearest class in the whole data set."""
        return self._dataset.nearest_class(label)

    def similar_classes(self, label: str) -> list[str]:
        """The similar classes in the whole data set."""
        return self._dataset.similar_classes(label)


class CenterCropped(Subset):
    """The central squares of the images of a data set, with a side relative to the shorter side of the image."""

    def __init__(self, dataset: Dataset, relative_side: float) -> None:
        super().__init__(dataset, range(len(dataset)), dataset.labels)
        self.relative_side = relative_side

    @cached_property
    def digest(self) -> str:
        return hash_values("centered", self._dataset.digest, self.relative_side)

    def __getitem__(self, i: int) -> Example:
        example = super().__getitem__(i)
        return replace(example, load=lambda: self._crop(example.image))

    def _crop(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 s s"]:
        return center_crop(image, round(self.relative_side * min(image.shape[-2:])))


def select_images(
    dataset: Dataset, classes: Sequence[str] | None, indices: Sequence[int] | None, center_crop: float = 1.0
) -> Dataset:
    """The images that are in the classes and at the positions; None selects all.

    Args:
        classes: class names, letter case aside; without `indices`, images remain in the order of the data set.
        indices: positions in the order of the seed, from 0, which is the new order.
        center_crop: side of the central square to which images are cropped, relative to the shorter side; 1 for the
            whole image.

    Raises:
        UserError: a class has no image, a position does not exist or is repeated, no image is left, or the relative
            side is not in (0, 1].
    """
    if not 0 < center_crop <= 1:
        raise UserError(f"select.center_crop={center_crop}: allowed are numbers above 0 and up to 1")
    selected = _select_by_class_and_position(dataset, classes, indices)
    return selected if center_crop == 1 else CenterCropped(selected, center_crop)


def _select_by_class_and_position(
    dataset: Dataset, classes: Sequence[str] | None, indices: Sequence[int] | None
) -> Dataset:
    if classes is None and indices is None:
        return dataset
    for key, value, kind in (("classes", classes, "names as [a, b]"), ("indices", indices, "positions as [0, 7]")):
        if value is not None and (isinstance(value, str) or not isinstance(value, Sequence)):
            raise UserError(f"select.{key}={value}: allowed are {kind}, or null for all")
    positions = list(range(len(dataset))) if indices is None else _check_indices(indices, len(dataset))
    labels = dataset.labels
    if classes is not None:
        positions_of_classes = {position for name in classes for position in _positions_of_class(dataset, name)}
        positions = [position for position in positions if position in positions_of_classes]
        selected_labels = {label for name in classes for label in matching_names(name, dataset.labels)}
        labels = tuple(label for label in dataset.labels if label in selected_labels)
    if not positions:
        raise UserError(f"select.classes={classes}, select.indices={indices}: no image is left")
    return Subset(dataset, positions, labels)


def _positions_of_class(dataset: Dataset, name: str) -> list[int]:
    """The positions of the images of a class. Raises UserError if there are none."""
    if not (positions := dataset.indices(name)):
        some_labels = ", ".join(dataset.labels[:10])
        raise UserError(f"select.classes={name}: the data set has no such image; its classes are {some_labels} …")
    return positions


def _check_indices(indices: Sequence[int], size: int) -> list[int]:
    """The positions as a list. Raises UserError if one does not exist or is repeated."""
    for i in indices:
        if not isinstance(i, int) or not 0 <= i < size:
            raise UserError(f"select.indices={i}: allowed are 0 to {size - 1}, positions in the seed's order")
    if repeated := [i for i, count in Counter(indices).items() if count > 1]:
        raise UserError(f"select.indices={repeated[0]}: occurs more than once")
    return list(indices)
