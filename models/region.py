"""Which part of a picture is free to change, and what the reader has to know about it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from runner.types import Problem

LARGE = 0.6  # share of the picture above which a mask is reported: the object is then rarely all that it covers


def free(
    soft: Float[Tensor, "b 1 h w"], masks: Float[Tensor, "b 1 h w"], keeps: Sequence[str]
) -> Float[Tensor, "b 1 h w"]:
    """The region S in [0, 1] that is free: the softened mask for `background`, what it leaves for `foreground`, nothing
    for `all`, everything for `none`. Where there should be a mask and it is empty, everything is free."""
    ones = torch.ones_like(soft[0])
    regions = {
        "all": lambda _: 0 * ones,
        "none": lambda _: ones,
        "background": lambda s: s,
        "foreground": lambda s: 1 - s,
    }
    return torch.stack([
        ones if keep in ("background", "foreground") and not mask.any() else regions[keep](s)
        for s, mask, keep in zip(soft, masks, keeps, strict=True)
    ])  # fmt: skip


def described(masks: Float[Tensor, "b 1 h w"], problems: Sequence[Problem]) -> list[list[str]]:
    """Per problem what is odd about its mask: empty, everything, or more than `LARGE` of the picture."""
    return [
        _described(share, p) if p.keep in ("background", "foreground") else []
        for share, p in zip(masks.flatten(1).mean(dim=1).tolist(), problems, strict=True)
    ]


def _described(share: float, problem: Problem) -> list[str]:
    words = problem.region
    if share == 0:
        return [f"the mask of '{words}' was empty: the whole picture is free to change"]
    if share == 1:
        whole = "free to change" if problem.keep == "background" else "kept"
        return [f"the mask of '{words}' covers everything: the whole picture is {whole}"]
    return [f"the mask of '{words}' covers {share:.0%} of the picture"] if share > LARGE else []
