"""Checks of shortcuts and subsampling of photographs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from classifier_lens.data.planted.cues import (
    PLANTED_FACTORS,
    PLANTED_SHORTCUTS,
)
from classifier_lens.data.shortcuts import (
    ShortcutStrength,
    check_shortcuts,
    class_strengths,
    subsample_to_strength,
)
from classifier_lens.runner.types import UserError

HUES = {"fiddler crab": {"hue": "red"}, "viaduct": {"hue": "blue"}}


@pytest.mark.parametrize(
    ("shortcuts", "message"),
    [
        ({"owl": {"hue": "red"}}, r"class=owl: allowed are fiddler crab, .*viaduct$"),
        ({"viaduct": {"size": "big"}}, r"shortcuts.viaduct: factor=size: allowed are background, prop, hue$"),
        ({"viaduct": {"hue": "pink"}}, r"shortcuts.viaduct.hue=pink: allowed are red, .*grey$"),
        ({"viaduct": "red"}, r"shortcuts.viaduct=red: expected factor: value"),
        ({"viaduct": {}}, r"shortcuts.viaduct={}: expected factor: value"),
    ],
)
def test_unknown_shortcuts_are_refused_in_one_line(shortcuts: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        check_shortcuts(shortcuts, PLANTED_FACTORS)
    assert "\n" not in str(refused.value)
    check_shortcuts(PLANTED_SHORTCUTS, PLANTED_FACTORS)


def test_strengths_are_one_number_or_one_per_class() -> None:
    assert class_strengths(0.5, HUES) == {"fiddler crab": 0.5, "viaduct": 0.5}
    assert class_strengths({"viaduct": 1}, HUES) == {"viaduct": 1.0} and class_strengths({}, HUES) == {}


def test_a_strength_of_a_class_without_a_cue_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"owl has no cue; allowed are fiddler") as refused:
        class_strengths({"owl": 1}, HUES)
    assert "\n" not in str(refused.value)


# --- subsampling of photographs ------------------------------------------------------------------------------


# Ten images of class a, four of which show its cue; five of class b, all of which would.
LABELS = torch.tensor([0] * 10 + [1] * 5)
SHOWN = torch.tensor([True] * 4 + [False] * 6 + [True] * 5)


@pytest.mark.parametrize(
    ("strength", "others"),
    # 4 of 10 show it by chance: s + (1 - s) 0.4 of 4 + k images.
    [({}, 6), ({"a": 0.0}, 6), ({"a": 0.25}, 3), ({"a": 0.5}, 2), ({"a": 0.9}, 0), ({"a": 1.0}, 0), ({"b": 1.0}, 6)],
)
def test_counts_of_a_subsample_known_by_hand(strength: ShortcutStrength, others: int) -> None:
    positions = subsample_to_strength(LABELS, SHOWN, ("a", "b"), strength, 0)
    assert torch.equal(positions, positions.unique()) and set(range(4)) | set(range(10, 15)) <= set(positions.tolist())
    assert len(positions) == 4 + others + 5
    assert torch.equal(positions, subsample_to_strength(LABELS, SHOWN, ("a", "b"), strength, 0))


def test_a_higher_strength_removes_more_images_in_the_same_order() -> None:
    weak, strong = (set(subsample_to_strength(LABELS, SHOWN, ("a", "b"), {"a": s}, 3).tolist()) for s in (0.25, 0.5))
    assert strong < weak
    others = {tuple(subsample_to_strength(LABELS, SHOWN, ("a", "b"), {"a": 0.5}, seed).tolist()) for seed in range(9)}
    assert len(others) > 1


def test_a_class_without_an_image_with_its_cue_is_refused() -> None:
    with pytest.raises(UserError, match=r"shortcuts.a: none of the 2 images"):
        subsample_to_strength(torch.tensor([0, 0, 1]), torch.tensor([False, False, True]), ("a", "b"), {"a": 0.5}, 0)
