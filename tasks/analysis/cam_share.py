"""Which share of a map lies on the object that a picture's mask shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.types import Images

# What has to be kept for the mask to show the object: it frees the object, or all but the object.
PRESERVE_WITH_OBJECT_MASK = ("background", "foreground")


def object_region(pictures: Images, preserve: str) -> Float[Tensor, "1 h w"]:
    """Where the object is, in [0, 1]: what the mask frees where the background is kept, else what it does not."""
    return pictures["mask"] if preserve == "background" else 1 - pictures["mask"]


def share_inside(values: Float[Tensor, "h w"], region: Float[Tensor, "1 h w"]) -> float:
    """Share of a map of values of 0 and above that lies within a region in [0, 1]; 0 for an empty map."""
    return float((values * region[0].to(values)).sum() / values.sum().clamp(min=torch.finfo(values.dtype).tiny))


def mean_by_key(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of records that have the same keys; nothing for no records."""
    return {key: fmean(r[key] for r in records) for key in (records[0] if records else ())}
