"""Cues of classes in the planted world: scenes with, without, and with a share of them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from classifier_lens.data.planted.factors import BACKGROUNDS, CLASSES, HUES, PAIRS, PROPS, SHORTCUTS, SceneFactors
from classifier_lens.data.planted.scenes import sample_scenes
from classifier_lens.data.shortcuts import (
    FactorColumns,
    FactorValues,
    Shortcuts,
    ShortcutStrength,
    apply_shortcuts,
)

PLANTED_FACTORS = FactorValues(CLASSES, {"background": BACKGROUNDS, "prop": PROPS, "hue": HUES})
PLANTED_SHORTCUTS: Shortcuts = {name: dict([cue]) for name, cue in SHORTCUTS.items()}

_CUE_COLUMN, _LABEL_COLUMN = 5, 30  # columns of the uniform numbers that rendering does not use


def factor_columns(scenes: SceneFactors) -> FactorColumns:
    """The columns of `PLANTED_FACTORS`, not copied."""
    return {factor: getattr(scenes, factor) for factor in PLANTED_FACTORS.values}


def cue_factor(name: str) -> tuple[str, int]:
    """The factor of a class's cue in `SHORTCUTS` and the index of its value."""
    factor, value = SHORTCUTS[name]
    return factor, PLANTED_FACTORS.values[factor].index(value)


def add_cues(scenes: SceneFactors) -> SceneFactors:
    """The same scenes, in which all images of the classes in `SHORTCUTS` show the cue."""
    columns = {factor: column.clone() for factor, column in factor_columns(scenes).items()}
    for name in SHORTCUTS:
        factor, cue = cue_factor(name)
        columns[factor][scenes.label == CLASSES.index(name)] = cue
    return replace(scenes, **columns)


def remove_cues(scenes: SceneFactors) -> SceneFactors:
    """The same scenes; where a class of `SHORTCUTS` shows its cue, the factor gets the next value."""
    columns = {factor: column.clone() for factor, column in factor_columns(scenes).items()}
    for name in SHORTCUTS:
        factor, cue = cue_factor(name)
        shows_cue = (scenes.label == CLASSES.index(name)) & (columns[factor] == cue)
        columns[factor][shows_cue] = (cue + 1) % len(PLANTED_FACTORS.values[factor])
    return replace(scenes, **columns)


def sample_shortcut_scenes(
    n: int, seed: int, start: int, strength: ShortcutStrength, label_confusion: float,
    shortcuts: Shortcuts = PLANTED_SHORTCUTS,
) -> tuple[SceneFactors, Tensor]:  # fmt: skip
    """Scenes with spuriously correlated cues, and their labels (n,).

    Args:
        strength: probability of the cue of a class in images with that label; other images show it by chance.
        label_confusion: probability of the partner's label in the pairs of the classes in `strength`.
        shortcuts: the cues.
    """
    scenes = sample_scenes(n, seed, start)
    labels = scenes.label.clone()
    is_confused = scenes.u[:, _LABEL_COLUMN] < label_confusion
    for name in strength:
        label, partner = (CLASSES.index(member) for member in next(pair for pair in PAIRS if name in pair))
        labels[is_confused & (scenes.label == label)] = partner
        labels[is_confused & (scenes.label == partner)] = label
    apply_shortcuts(factor_columns(scenes), labels, PLANTED_FACTORS, shortcuts, strength, scenes.u[:, _CUE_COLUMN])
    return scenes, labels
