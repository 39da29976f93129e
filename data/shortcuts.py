"""Spuriously correlated cues in training images, the shortcuts that a classifier may learn (DiffExplainer, Section
4.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from classifier_lens.data.image_selection import check_choice, shuffled_indices
from classifier_lens.runner.types import UserError

Shortcuts = Mapping[str, Mapping[str, str]]  # class -> its cue: factor -> value
ShortcutStrength = Mapping[str, float]  # class -> probability that the cue is added to an image of it
FactorColumns = Mapping[str, Int[Tensor, " n"]]  # factor -> index of its value in each image


@dataclass(frozen=True)
class FactorValues:
    """The class names, and the names of the values of each factor that can be a cue."""

    classes: Sequence[str]
    values: Mapping[str, Sequence[str]]


def check_shortcuts(shortcuts: Shortcuts, factors: FactorValues) -> None:
    """Raises UserError for an unknown class, factor or value."""
    for name, cue in shortcuts.items():
        check_choice("shortcuts: class", name, factors.classes)
        if not isinstance(cue, Mapping) or not cue:
            raise UserError(
                f"shortcuts.{name}={cue}: expected factor: value, with a factor of {', '.join(factors.values)}"
            )
        for factor, value in cue.items():
            check_choice(f"shortcuts.{name}: factor", factor, factors.values)
            check_choice(f"shortcuts.{name}.{factor}", value, factors.values[factor])


def class_strengths(strength: Mapping[str, Any] | Any, shortcuts: Shortcuts) -> dict[str, float]:
    """The strength of each class, from one number for all classes in `shortcuts` or from numbers by class.

    Raises UserError for a class without a cue.
    """
    strengths = strength if isinstance(strength, Mapping) else dict.fromkeys(shortcuts, strength)
    if without_cue := [str(name) for name in strengths if name not in shortcuts]:
        raise UserError(f"shortcut_strength: {', '.join(without_cue)} has no cue; allowed are {', '.join(shortcuts)}")
    return {str(name): float(value) for name, value in strengths.items()}


def apply_shortcuts(
    columns: FactorColumns,
    labels: Int[Tensor, " n"],
    factors: FactorValues,
    shortcuts: Shortcuts,
    strength: ShortcutStrength,
    u: Float[Tensor, " n"],
) -> None:
    """Set the factors of the cue, in place, in images of a class whose `u` in [0, 1) is below the strength s.

    Other images stay unchanged, so the cue has the frequency s + (1 - s) p, where p is its frequency before.
    """
    for name, class_strength in strength.items():
        rows = (labels == factors.classes.index(name)) & (u < class_strength)
        for factor, value in shortcuts[name].items():
            columns[factor][rows] = factors.values[factor].index(value)


def has_cue(
    columns: FactorColumns, labels: Int[Tensor, " n"], factors: FactorValues, shortcuts: Shortcuts
) -> Bool[Tensor, " n"]:  # fmt: skip
    """Whether each image shows all factors of the cue of its label; False for labels without a cue."""
    result = labels < 0
    for name, cue in shortcuts.items():
        shows_cue = labels == factors.classes.index(name)
        for factor, value in cue.items():
            shows_cue = shows_cue & (columns[factor] == factors.values[factor].index(value))
        result = result | shows_cue
    return result


def subsample_to_strength(
    labels: Int[Tensor, " n"], with_cue: Bool[Tensor, " n"], classes: Sequence[str], strength: ShortcutStrength,
    seed: int,
) -> Int[Tensor, " m"]:  # fmt: skip
    """The positions of a subset of photographs in which the cues have the frequencies of `apply_shortcuts`, rounded.

    All images with the cue of their class remain. Of the other images of the class the first in the order of the seed
    remain, so many that the cue has the frequency s + (1 - s) p. Classes without a cue remain complete. Raises
    UserError for a class without an image that shows the cue.
    """
    remains = labels >= 0
    for name, class_strength in strength.items():
        of_class = labels == classes.index(name)
        others, num_with_cue = (of_class & ~with_cue).nonzero()[:, 0], int((of_class & with_cue).sum())
        if class_strength == 0:
            continue
        if num_with_cue == 0:
            raise UserError(f"shortcuts.{name}: none of the {len(others)} images of the class shows its cue")
        frequency = class_strength + (1 - class_strength) * num_with_cue / (num_with_cue + len(others))
        num_others = round(num_with_cue * (1 - frequency) / frequency)
        remains[others[shuffled_indices(len(others), seed)[num_others:]]] = False
    return remains.nonzero()[:, 0]
