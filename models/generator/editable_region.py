"""Which part of a picture is free to change, and what the reader has to know about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.types import Problem

LARGE_MASK_FRACTION = (
    0.6  # share of the picture above which a mask is reported: the object is then rarely all that it covers
)


# The masks of rows' words: from their images, the problems that they belong to, and their positions in the batch.
SegmentFn = Callable[[Float[Tensor, "b 3 h w"], Sequence[Problem], Sequence[int]], Float[Tensor, "b 1 h w"]]


def needs_segmenter(problem: Problem) -> bool:
    """Whether the segmenter has to find where a problem's words are."""
    return problem.preserve in ("background", "foreground") and problem.mask is None


def object_masks(
    images: Float[Tensor, "b 3 h w"], problems: Sequence[Problem], segment: SegmentFn
) -> Float[Tensor, "b 1 h w"]:
    """Where each problem's words are: the mask that it brings, or the segmenter's; 0 where none is needed."""
    masks = torch.zeros_like(images[:, :1])
    if rows := [i for i, problem in enumerate(problems) if needs_segmenter(problem)]:
        masks[rows] = segment(images[rows], [problems[i] for i in rows], rows)
    for mask, problem in zip(masks, problems, strict=True):
        if problem.mask is not None:
            mask.copy_(problem.mask)
    return masks


def editable_region(
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


def mask_warnings(masks: Float[Tensor, "b 1 h w"], problems: Sequence[Problem]) -> list[list[str]]:
    """Per problem what is odd about its mask: empty, everything, or more than `LARGE` of the picture."""
    return [
        _described(share, p) if p.preserve in ("background", "foreground") else []
        for share, p in zip(masks.flatten(1).mean(dim=1).tolist(), problems, strict=True)
    ]


def _described(share: float, problem: Problem) -> list[str]:
    words = problem.words_to_segment
    if share == 0:
        return [f"the mask of '{words}' was empty: the whole picture is free to change"]
    if share == 1:
        whole = "free to change" if problem.preserve == "background" else "kept"
        return [f"the mask of '{words}' covers everything: the whole picture is {whole}"]
    return [f"the mask of '{words}' covers {share:.0%} of the picture"] if share > LARGE_MASK_FRACTION else []
