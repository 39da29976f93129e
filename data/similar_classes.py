"""Similar classes of a data set: none, or the other class of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class UnknownSimilarity:
    """A data set that does not know which of its classes are similar."""

    def nearest_class(self, label: str) -> str | None:
        """None, since it is unknown."""
        return None

    def similar_classes(self, label: str) -> list[str]:
        """An empty list, since they are unknown."""
        return []


class PairedClasses:
    """A data set whose classes are pairs of similar classes."""

    pairs: ClassVar[Sequence[tuple[str, str]]]

    def nearest_class(self, label: str) -> str | None:
        """The other class of the pair."""
        return next((b if label == a else a for a, b in self.pairs if label in (a, b)), None)

    def similar_classes(self, label: str) -> list[str]:
        """The other class of the pair alone."""
        other = self.nearest_class(label)
        return [] if other is None else [other]
