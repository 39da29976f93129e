"""The editable region of an image, and warnings about its mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.types import Problem

LARGE_MASK_FRACTION = (
    0.6  # share of the image above which there is a warning: the mask then rarely covers the object alone
)


# Segments the objects of some of a batch's problems: from their images, the problems, and their positions in the batch.
SegmentFn = Callable[[Float[Tensor, "b 3 h w"], Sequence[Problem], Sequence[int]], Float[Tensor, "b 1 h w"]]


def needs_segmenter(problem: Problem) -> bool:
    """Whether a problem needs a mask from the segmenter."""
    return problem.preserve in ("background", "foreground") and problem.mask is None


def object_masks(
    images: Float[Tensor, "b 3 h w"], problems: Sequence[Problem], segment: SegmentFn
) -> Float[Tensor, "b 1 h w"]:
    """The mask of each problem's object: its own, else the segmenter's; 0 where none is needed."""
    masks = torch.zeros_like(images[:, :1])
    if rows := [i for i, problem in enumerate(problems) if needs_segmenter(problem)]:
        masks[rows] = segment(images[rows], [problems[i] for i in rows], rows)
    for mask, problem in zip(masks, problems, strict=True):
        if problem.mask is not None:
            mask.copy_(problem.mask)
    return masks


def editable_region(
    soft: Float[Tensor, "b 1 h w"], masks: Float[Tensor, "b 1 h w"], preserve: Sequence[str]
) -> Float[Tensor, "b 1 h w"]:
    """The editable region S in [0, 1] by what is preserved: the postprocessed mask for `background`, the rest for
    `foreground`, nothing for `all`, everything for `none`. With an empty mask everything is editable.

    soft: postprocessed masks; masks: as segmented."""
    ones = torch.ones_like(soft[0])
    regions = {
        "all": lambda _: 0 * ones,
        "none": lambda _: ones,
        "background": lambda s: s,
        "foreground": lambda s: 1 - s,
    }
    return torch.stack([
        ones if region in ("background", "foreground") and not mask.any() else regions[region](s)
        for s, mask, region in zip(soft, masks, preserve, strict=True)
    ])  # fmt: skip


def mask_warnings(masks: Float[Tensor, "b 1 h w"], problems: Sequence[Problem]) -> list[list[str]]:
    """Warnings per problem about its mask: empty, everything, or more than `LARGE_MASK_FRACTION` of the image."""
    return [
        _mask_warnings(share, p) if p.preserve in ("background", "foreground") else []
        for share, p in zip(masks.flatten(1).mean(dim=1).tolist(), problems, strict=True)
    ]


def _mask_warnings(share: float, problem: Problem) -> list[str]:
    words = problem.words_to_segment
    if share == 0:
        return [f"the mask of '{words}' was empty: the whole image is editable"]
    if share == 1:
        whole = "editable" if problem.preserve == "background" else "preserved"
        return [f"the mask of '{words}' covers everything: the whole image is {whole}"]
    return [f"the mask of '{words}' covers {share:.0%} of the image"] if share > LARGE_MASK_FRACTION else []
