"""Scenes in which a class is tied to a cue, the shortcut that a classifier may learn (DiffExplainer, Section 4.5)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from data import planted

_TIED, _CONFUSED = 5, 30  # columns of a scene's uniform numbers; rendering reads neither


def draw_tied(
    n: int, seed: int, start: int, strength: Mapping[str, float], confusion: float
) -> tuple[planted.Scenes, Tensor]:
    """Scenes, and the class that each is labelled with, (n,).

    A share `confusion` of the labels in the pairs of the classes named in `strength` is the partner's. What is
    labelled as such a class has the class's cue of `planted.SHORTCUTS` with probability `strength`; elsewhere the
    cue stays independent of the label.
    """
    scenes = planted.draw(n, seed, start)
    labels = scenes.label.clone()
    swapped, tied = scenes.u[:, _CONFUSED] < confusion, scenes.u[:, _TIED]
    for name in strength:
        own, partner = (planted.CLASSES.index(c) for c in next(pair for pair in planted.PAIRS if name in pair))
        labels[swapped & (scenes.label == own)], labels[swapped & (scenes.label == partner)] = partner, own
    for name, share in strength.items():
        factor, cue = cue_of(name)
        getattr(scenes, factor)[(labels == planted.CLASSES.index(name)) & (tied < share)] = cue
    return scenes, labels


def cue_of(name: str) -> tuple[str, int]:
    """The factor of a tied class's cue and the index of its value."""
    factor, value = planted.SHORTCUTS[name]
    return factor, (planted.BACKGROUNDS if factor == "background" else planted.PROPS).index(value)
