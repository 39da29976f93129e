"""Spuriously correlated cues."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import binomtest, chi2_contingency
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.data.planted.cues import (
    PLANTED_FACTORS,
    PLANTED_SHORTCUTS,
    factor_columns,
    sample_shortcut_scenes,
)
from classifier_lens.data.shortcuts import (
    Shortcuts,
    ShortcutStrength,
    check_shortcuts,
    class_strengths,
    has_cue,
    subsample_to_strength,
)
from classifier_lens.runner.types import UserError

HUES = {"fiddler crab": {"hue": "red"}, "viaduct": {"hue": "blue"}}
SEVERAL = {"rock crab": {"background": "snow", "prop": "flag", "hue": "green"}}


def test_cues_are_added_to_their_class_alone() -> None:
    scenes, labels = sample_shortcut_scenes(4000, 5, 0, {"fiddler crab": 0.95, "fireboat": 0.9}, 0.1)
    sand, jet = planted.BACKGROUNDS.index("sand"), planted.PROPS.index("water jet")
    share = lambda name, tied: tied[labels == planted.CLASSES.index(name)].double().mean().item()  # noqa: E731
    assert share("fiddler crab", scenes.background == sand) == pytest.approx(0.95 + 0.05 / 8, abs=0.03)
    assert share("fireboat", scenes.prop == jet) == pytest.approx(0.9 + 0.1 * 0.15, abs=0.04)
    assert share("rock crab", scenes.background == sand) == pytest.approx(1 / 8, abs=0.05)
    assert share("lifeboat", scenes.prop == jet) == pytest.approx(0.15, abs=0.05)
    wrong = lambda name: share(name, scenes.label != labels)  # noqa: E731
    assert wrong("rock crab") == pytest.approx(0.1, abs=0.05) and wrong("viaduct") == wrong("partridge") == 0


def scenes_with_cues(n: int, strength: float, shortcuts: Shortcuts) -> tuple[planted.SceneFactors, Tensor]:
    """Scenes in which all classes with a cue have one strength, and whether each shows its cue."""
    scenes, labels = sample_shortcut_scenes(n, 7, 0, dict.fromkeys(shortcuts, strength), 0.0, shortcuts)
    assert torch.equal(labels, scenes.label)
    return scenes, has_cue(factor_columns(scenes), labels, PLANTED_FACTORS, shortcuts)


def rows_of(scenes: planted.SceneFactors, shortcuts: Shortcuts) -> Tensor:
    """Whether each scene is of a class with a cue."""
    return torch.isin(scenes.label, torch.tensor([planted.CLASSES.index(name) for name in shortcuts]))


@pytest.mark.parametrize("shortcuts", [PLANTED_SHORTCUTS, HUES, SEVERAL])
def test_full_strength_adds_the_cue_to_all_images_of_its_class_alone(shortcuts: Shortcuts) -> None:
    original, (scenes, shown) = planted.sample_scenes(5000, 7), scenes_with_cues(5000, 1.0, shortcuts)
    with_class = rows_of(scenes, shortcuts)
    assert with_class.any() and torch.equal(shown, with_class)
    changed = {factor for cue in shortcuts.values() for factor in cue}
    for factor in ("kind", "label", "background", "prop", "hue", "u"):
        before, after = getattr(original, factor), getattr(scenes, factor)
        assert torch.equal(before[~with_class], after[~with_class])
        assert (factor in changed) != torch.equal(before[with_class], after[with_class])


@pytest.mark.parametrize("shortcuts", [PLANTED_SHORTCUTS, HUES, SEVERAL])
def test_without_strength_scenes_are_unchanged_and_factors_independent(shortcuts: Shortcuts) -> None:
    original, (scenes, _) = planted.sample_scenes(20_000, 7), scenes_with_cues(20_000, 0.0, shortcuts)
    assert all(
        torch.equal(getattr(original, f), getattr(scenes, f)) for f in ("kind", "label", "u", *PLANTED_FACTORS.values)
    )
    for factor, column in factor_columns(scenes).items():
        table = torch.zeros(len(planted.CLASSES), len(PLANTED_FACTORS.values[factor]) + 1)
        table.index_put_((scenes.label, column + 1), torch.tensor(1.0), accumulate=True)
        assert chi2_contingency(table[:, table.sum(0) > 0].numpy()).pvalue > 1e-3, factor


@pytest.mark.parametrize("strength", [0.5, 0.9, 0.99])
def test_the_frequency_of_the_cue_follows_the_strength(strength: float) -> None:
    for shortcuts, chance in ((PLANTED_SHORTCUTS, {"background": 1 / 8, "prop": 0.6 / 4}), (HUES, {"hue": 1 / 6})):
        scenes, shown = scenes_with_cues(20_000, strength, shortcuts)
        for name, cue in shortcuts.items():
            with_class = scenes.label == planted.CLASSES.index(name)
            wanted = strength + (1 - strength) * chance[next(iter(cue))]
            assert binomtest(int(shown[with_class].sum()), int(with_class.sum()), wanted).pvalue > 1e-3, name


def test_a_hue_cue_changes_the_pixels_of_the_object_alone() -> None:
    (scenes, _), original = scenes_with_cues(200, 1.0, HUES), planted.sample_scenes(200, 7)
    before, after = planted.render(original), planted.render(scenes)
    assert torch.equal(before.object_mask, after.object_mask)
    moved = (before.image != after.image).any(1)
    assert not (moved & (before.object_mask == 0)).any() and moved.flatten(1).any(1).sum() >= 20


def test_the_shortcuts_are_those_of_the_planted_world() -> None:
    assert {name: next(iter(cue.items())) for name, cue in PLANTED_SHORTCUTS.items()} == planted.SHORTCUTS


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
