"""No data set: for tasks whose images are drawn."""

from __future__ import annotations

from typing import NoReturn

from classifier_lens.data.image_selection import hash_values


class NoDataset:
    """A data set without images."""

    labels: tuple[str, ...] = ()
    digest = hash_values("drawn")

    def __len__(self) -> int:
        return 0

    def __getitem__(self, i: int) -> NoReturn:
        raise IndexError(f"picture {i} of 0")

    def indices(self, label: str) -> list[int]:
        return []

    def nearest_class(self, label: str) -> None:
        return None

    def similar_classes(self, label: str) -> list[str]:
        return []
