"""Ties between classes and cues, the shortcuts that a classifier may learn (DiffExplainer, Section 4.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.data.image_selection import check_choice, shuffled_indices
from classifier_lens.runner.types import UserError

Shortcuts = Mapping[str, Mapping[str, str]]  # class -> its cue, factor -> value
ShortcutStrength = Mapping[str, float]  # class -> share of its pictures that are given the cue
FactorColumns = Mapping[str, Int[Tensor, " n"]]  # factor -> index of its value in each picture

_TIED, _CONFUSED = 5, 30  # columns of a scene's uniform numbers; rendering reads neither


@dataclass(frozen=True)
class FactorValues:
    """What can be tied: the names of the classes, and of the values that each factor takes."""

    classes: Sequence[str]
    values: Mapping[str, Sequence[str]]


PLANTED_FACTORS = FactorValues(
    planted.CLASSES, {"background": planted.BACKGROUNDS, "prop": planted.PROPS, "hue": planted.HUES}
)  # fmt: skip
SHORTCUTS: Shortcuts = {name: dict([cue]) for name, cue in planted.SHORTCUTS.items()}


def check_shortcuts(ties: Shortcuts, factors: FactorValues) -> None:
    """Raise UserError for a class, a factor or a value that there is not."""
    for name, cue in ties.items():
        check_choice("ties: class", name, factors.classes)
        if not isinstance(cue, Mapping) or not cue:
            raise UserError(f"ties.{name}={cue}: wanted is factor: value, with factors {', '.join(factors.values)}")
        for factor, value in cue.items():
            check_choice(f"ties.{name}: factor", factor, factors.values)
            check_choice(f"ties.{name}.{factor}", value, factors.values[factor])


def class_strengths(strength: Mapping[str, Any] | Any, ties: Shortcuts) -> dict[str, float]:
    """The strength of each tied class, from one number for all of `ties` or from numbers by class.

    Raises UserError for a class without a cue.
    """
    given = strength if isinstance(strength, Mapping) else dict.fromkeys(ties, strength)
    if wrong := [str(name) for name in given if name not in ties]:
        raise UserError(f"strength: {', '.join(wrong)} has no cue; allowed are {', '.join(ties)}")
    return {str(name): float(share) for name, share in given.items()}


def apply_shortcuts(
    columns: FactorColumns,
    labels: Int[Tensor, " n"],
    factors: FactorValues,
    ties: Shortcuts,
    strength: ShortcutStrength,
    u: Float[Tensor, " n"],
) -> None:
    """Give pictures labelled as a class the class's cue, in place, where their `u` in [0, 1) is below its strength.

    What is left stays as it was drawn: so the cue has the share s + (1 - s) p, p its own share in the draw.
    """
    for name, share in strength.items():
        rows = (labels == factors.classes.index(name)) & (u < share)
        for factor, value in ties[name].items():
            columns[factor][rows] = factors.values[factor].index(value)


def has_cue(
    columns: FactorColumns, labels: Int[Tensor, " n"], factors: FactorValues, ties: Shortcuts
) -> Bool[Tensor, " n"]:  # fmt: skip
    """Whether each picture shows the whole cue of the class that it is labelled with; without a cue it does not."""
    shown = labels < 0
    for name, cue in ties.items():
        own = labels == factors.classes.index(name)
        for factor, value in cue.items():
            own = own & (columns[factor] == factors.values[factor].index(value))
        shown = shown | own
    return shown


def subsample_to_strength(
    labels: Int[Tensor, " n"], shown: Bool[Tensor, " n"], classes: Sequence[str], strength: ShortcutStrength, seed: int
) -> Int[Tensor, " m"]:  # fmt: skip
    """Positions of the pictures that are kept so that cues have the shares that `tie` would give them, rounded.

    For photographs, whose factors cannot be set: all that show their class's cue (`shown`) stay, and as many of the
    class's others, the first in the seed's order, as leave the cue the share s + (1 - s) p. Other classes lose nothing.
    Raises UserError for a class none of whose pictures shows the cue.
    """
    kept = labels >= 0
    for name, share in strength.items():
        own = labels == classes.index(name)
        others, tied = (own & ~shown).nonzero()[:, 0], int((own & shown).sum())
        if share == 0:
            continue
        if tied == 0:
            raise UserError(f"ties.{name}: none of the {len(others)} pictures of the class shows its cue")
        wanted = share + (1 - share) * tied / (tied + len(others))
        count = round(tied * (1 - wanted) / wanted)
        kept[others[shuffled_indices(len(others), seed)[count:]]] = False
    return kept.nonzero()[:, 0]


# --- the planted world ---------------------------------------------------------------------------------------


def factor_columns(scenes: planted.SceneFactors) -> FactorColumns:
    """The factors of `PLANTED` in scenes, not copied."""
    return {factor: getattr(scenes, factor) for factor in PLANTED_FACTORS.values}


def sample_shortcut_scenes(
    n: int, seed: int, start: int, strength: ShortcutStrength, label_confusion: float, ties: Shortcuts = SHORTCUTS
) -> tuple[planted.SceneFactors, Tensor]:
    """Scenes, and the class that each is labelled with, (n,).

    A share `label_confusion` of the labels in the pairs of the classes named in `strength` is the partner's. What is
    labelled as such a class has the class's cue with probability `strength`; elsewhere the cue stays independent of the
    label.
    """
    scenes = planted.sample_scenes(n, seed, start)
    labels = scenes.label.clone()
    swapped = scenes.u[:, _CONFUSED] < label_confusion
    for name in strength:
        own, partner = (planted.CLASSES.index(c) for c in next(pair for pair in planted.PAIRS if name in pair))
        labels[swapped & (scenes.label == own)], labels[swapped & (scenes.label == partner)] = partner, own
    apply_shortcuts(factor_columns(scenes), labels, PLANTED_FACTORS, ties, strength, scenes.u[:, _TIED])
    return scenes, labels


def cue_factor(name: str) -> tuple[str, int]:
    """The factor of a class's cue in `planted.SHORTCUTS` and the index of its value."""
    factor, value = planted.SHORTCUTS[name]
    return factor, PLANTED_FACTORS.values[factor].index(value)
