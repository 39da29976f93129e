"""Spuriously correlated cues in the planted world."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest, chi2_contingency
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.data.planted.cues import (
    PLANTED_FACTORS,
    PLANTED_SHORTCUTS,
    add_cues,
    factor_columns,
    remove_cues,
    sample_shortcut_scenes,
)
from classifier_lens.data.shortcuts import (
    Shortcuts,
    has_cue,
)

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


@pytest.mark.parametrize("shortcuts", [PLANTED_SHORTCUTS, HUES, SEVERAL])
def test_cues_can_be_added_to_all_images_of_their_class_and_removed_from_all(shortcuts: Shortcuts) -> None:
    scenes = planted.sample_scenes(2000, 7)
    with_cues, without = add_cues(scenes, shortcuts), remove_cues(scenes, shortcuts)
    of_class = rows_of(scenes, shortcuts)
    assert torch.equal(has_cue(factor_columns(with_cues), scenes.label, PLANTED_FACTORS, shortcuts), of_class)
    for name, cue in shortcuts.items():
        single = [{name: {factor: value}} for factor, value in cue.items()]
        assert not any(has_cue(factor_columns(without), scenes.label, PLANTED_FACTORS, s).any() for s in single)
    for changed in (with_cues, without):
        for factor in ("kind", "label", "background", "prop", "hue", "u"):
            assert torch.equal(getattr(changed, factor)[~of_class], getattr(scenes, factor)[~of_class])
