"""The editable region by the preserved one, and warnings about masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from classifier_lens.models.generator.editable_region import LARGE_MASK_FRACTION, editable_region, mask_warnings
from classifier_lens.runner.types import PRESERVE_OPTIONS, CaptionEdit, Problem


def mask(share: float) -> Tensor:
    """A mask (1, 10, 10) whose first values are 1, this share of them."""
    values = torch.zeros(100)
    values[: round(100 * share)] = 1.0
    return values.view(1, 10, 10)


def problem(keep: str, words: str = "rock crab") -> Problem:
    edit = CaptionEdit.unchanged(f"a photograph of a {words}", words)
    return Problem(name="x", seed=0, edit=edit, load=None, image_name="x", preserve=keep)


def test_each_kind_of_keep_frees_its_own_part() -> None:
    masks = torch.stack([mask(0.4)] * 4)
    soft = torch.rand(4, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    region = editable_region(soft, masks, PRESERVE_OPTIONS)
    expected = {"background": soft[0], "foreground": 1 - soft[1], "all": torch.zeros(1, 10, 10),
                "none": torch.ones(1, 10, 10)}  # fmt: skip
    assert set(expected) == set(PRESERVE_OPTIONS)
    for own, keep in zip(region, PRESERVE_OPTIONS, strict=True):
        assert torch.equal(own, expected[keep]), keep


def test_background_and_foreground_are_each_others_rest() -> None:
    soft = torch.rand(1, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    parts = [editable_region(soft, mask(0.4)[None], [keep]) for keep in ("background", "foreground")]
    torch.testing.assert_close(sum(parts), torch.ones_like(soft))


@pytest.mark.parametrize(
    ("keep", "everything"), [("background", 1.0), ("foreground", 1.0), ("all", 0.0), ("none", 1.0)]
)
def test_an_empty_mask_frees_everything_where_a_mask_was_wanted(keep: str, everything: float) -> None:
    """Also where the softened mask is not empty; and a sample's mask decides for it alone."""
    masks, soft = torch.stack([mask(0.0), mask(0.3)]), torch.full((2, 1, 10, 10), 0.25)
    region = editable_region(soft, masks, [keep, "background"])
    assert torch.equal(region[0], torch.full((1, 10, 10), everything)) and torch.equal(region[1], soft[1])


@pytest.mark.parametrize("keep", ["background", "foreground"])
def test_only_odd_masks_are_described(keep: str) -> None:
    masks = torch.stack(
        [mask(share) for share in (0.0, 0.01, LARGE_MASK_FRACTION - 0.01, LARGE_MASK_FRACTION + 0.01, 1.0)]
    )
    notes = mask_warnings(masks, [problem(keep) for _ in masks])
    whole = "editable" if keep == "background" else "preserved"
    assert notes == [
        ["the mask of 'rock crab' was empty: the whole image is editable"], [], [],
        ["the mask of 'rock crab' covers 61% of the image"],
        [f"the mask of 'rock crab' covers everything: the whole image is {whole}"],
    ]  # fmt: skip


@pytest.mark.parametrize("keep", ["all", "none"])
def test_where_no_mask_is_wanted_none_is_described(keep: str) -> None:
    masks = torch.stack([mask(0.0), mask(1.0)])
    assert mask_warnings(masks, [problem(keep)] * 2) == [[], []]


def test_every_problem_is_described_by_its_own_words() -> None:
    notes = mask_warnings(torch.stack([mask(0.0), mask(1.0)]), [problem("background", w) for w in ("crab", "fireboat")])
    assert "'crab'" in notes[0][0] and "'fireboat'" in notes[1][0]
