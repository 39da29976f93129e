"""An empty data set, for tasks that generate their images."""

from __future__ import annotations

from typing import NoReturn

from classifier_lens.data.digests import hash_values
from classifier_lens.data.similar_classes import UnknownSimilarity


class NoDataset(UnknownSimilarity):
    """A data set without images."""

    labels: tuple[str, ...] = ()
    digest = hash_values("drawn")

    def __len__(self) -> int:
        return 0

    def __getitem__(self, i: int) -> NoReturn:
        raise IndexError(f"image {i} of 0")

    def indices(self, label: str) -> list[int]:
        return []
