"""Cues of classes in the planted world: scenes with, without, and with a share of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
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


def cue_indices(cue: Mapping[str, str]) -> dict[str, int]:
    """A cue with the index of each value."""
    return {factor: PLANTED_FACTORS.values[factor].index(value) for factor, value in cue.items()}


def add_cues(scenes: SceneFactors, shortcuts: Shortcuts = PLANTED_SHORTCUTS) -> SceneFactors:
    """The same scenes, in which all images of the classes with a shortcut show the cue."""
    return _replace_values(scenes, shortcuts, lambda values, cue, count: torch.full_like(values, cue))


def remove_cues(scenes: SceneFactors, shortcuts: Shortcuts = PLANTED_SHORTCUTS) -> SceneFactors:
    """The same scenes; where a class with a shortcut shows a factor of its cue, the factor gets the next value."""
    return _replace_values(
        scenes, shortcuts, lambda values, cue, count: torch.where(values == cue, (cue + 1) % count, values)
    )


def _replace_values(
    scenes: SceneFactors, shortcuts: Shortcuts, new_values: Callable[[Tensor, int, int], Tensor]
) -> SceneFactors:
    """The same scenes with new values of the factors of the cues, in images of their classes. new_values: takes the
    values of a factor in the images of a class, the index of the cue, and the number of values."""
    columns = {factor: column.clone() for factor, column in factor_columns(scenes).items()}
    for name, cue in shortcuts.items():
        is_class = scenes.label == CLASSES.index(name)
        for factor, value in cue_indices(cue).items():
            columns[factor][is_class] = new_values(
                columns[factor][is_class], value, len(PLANTED_FACTORS.values[factor])
            )
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
