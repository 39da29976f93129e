"""The share of a map that lies on the object, which the mask of a result shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.result_schema import ResultImages

# Preserved regions with which the mask shows the object: the editable region is the object, or everything else.
PRESERVE_WITH_OBJECT_MASK = ("background", "foreground")


def object_region(images: ResultImages, preserve: str) -> Float[Tensor, "1 h w"]:
    """The object in [0, 1]: the editable region if the background is preserved, else the rest of the image. preserve:
    one of `PRESERVE_WITH_OBJECT_MASK`."""
    assert images.mask is not None
    return images.mask if preserve == "background" else 1 - images.mask


def share_inside(values: Float[Tensor, "h w"], region: Float[Tensor, "1 h w"]) -> float:
    """Share of a non-negative map that lies within a region in [0, 1]; 0 for an empty map."""
    return float((values * region[0].to(values)).sum() / values.sum().clamp(min=torch.finfo(values.dtype).tiny))


def mean_by_key(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over records with the same keys; empty for no records."""
    return {key: fmean(r[key] for r in records) for key in (records[0] if records else ())}
