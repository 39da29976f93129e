"""No data set: for tasks whose images are drawn."""

from __future__ import annotations

from typing import NoReturn

from classifier_lens.data.image_selection import digest_of


class Drawn:
    """A data set without images."""

    labels: tuple[str, ...] = ()
    digest = digest_of("drawn")

    def __len__(self) -> int:
        return 0

    def __getitem__(self, i: int) -> NoReturn:
        raise IndexError(f"picture {i} of 0")

    def rows(self, label: str) -> list[int]:
        return []

    def nearest(self, label: str) -> None:
        return None

    def cluster(self, label: str) -> list[str]:
        return []
