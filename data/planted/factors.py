"""The factors of the planted world: classes, backgrounds, props, hues, and their values in a batch of scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

CLASSES = (
    "fiddler crab",
    "rock crab",
    "great white shark",
    "tiger shark",
    "prairie chicken",
    "partridge",
    "fireboat",
    "lifeboat",
    "steel arch bridge",
    "viaduct",
)
PAIRS = tuple((CLASSES[i], CLASSES[i + 1]) for i in range(0, len(CLASSES), 2))
BACKGROUND_PHRASES = {
    "sand": "on sand",
    "water": "in water",
    "dry grass": "on dry grass",
    "snow": "in snow",
    "forest": "in a forest",
    "brick wall": "against a brick wall",
    "night sky": "under a night sky",
    "wooden table": "on a wooden table",
}
BACKGROUNDS = tuple(BACKGROUND_PHRASES)
PROP_PHRASES = {"flowers": "flowers", "water jet": "a water jet", "flag": "a flag", "branches": "branches"}
PROPS = tuple(PROP_PHRASES)
HUES = ("red", "yellow", "green", "blue", "purple", "grey")
IMAGE_KINDS = ("object", "background", "prop", "background texture", "prop texture", "shape")
ABSENT = -1  # index of an absent class, background or prop

# Cues of the shortcut classifiers' training images: class -> (factor, value).
SHORTCUTS = {
    "fiddler crab": ("background", "sand"),
    "great white shark": ("background", "water"),
    "prairie chicken": ("background", "dry grass"),
    "fireboat": ("prop", "water jet"),
}


@dataclass(frozen=True)
class SceneFactors:
    """The factors of a batch of scenes, as long tensors (n,) of indices or `ABSENT`.

    Args:
        kind: index into `IMAGE_KINDS`.
        label: index into `CLASSES`.
        background: index into `BACKGROUNDS`.
        prop: index into `PROPS`.
        hue: index into `HUES`.
        u: uniform numbers (n, 32) in [0, 1) that determine size, position, flip, phases and colors.
    """

    kind: Tensor
    label: Tensor
    background: Tensor
    prop: Tensor
    hue: Tensor
    u: Tensor

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> SceneFactors:
        return SceneFactors(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def with_factors(self, **factors: int) -> SceneFactors:
        """The same scenes with some factors set to one value, e.g. `with_factors(background=2)`."""
        return replace(self, **{name: torch.full_like(getattr(self, name), i) for name, i in factors.items()})
