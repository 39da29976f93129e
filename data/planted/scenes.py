"""Sampling of scenes. Scene `i` depends on the seed and `i` alone, so any part of a split can be sampled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from classifier_lens.data.planted.captions import caption
from classifier_lens.data.planted.factors import (
    ABSENT,
    BACKGROUNDS,
    CLASSES,
    HUES,
    IMAGE_KINDS,
    PROPS,
    SceneFactors,
)
from classifier_lens.data.planted.uniform_numbers import uniform_numbers

ABSENT_PROP_PROBABILITY = 0.4
KIND_PROBABILITIES = [0.80, 0.05, 0.04, 0.04, 0.03]  # of `IMAGE_KINDS` in training images; the last one has the rest


def sample_scenes(n: int, seed: int, start: int = 0, kind: str = "object") -> SceneFactors:
    """Scenes `start` to `start + n` of a seed; all factors are independent and uniform, except for absent props."""
    u = uniform_numbers(seed, start, n)
    index = lambda column, count: torch.from_numpy((u[:, column] * count).astype(np.int64))  # noqa: E731
    label, background, hue = index(0, len(CLASSES)), index(1, len(BACKGROUNDS)), index(2, len(HUES))
    prop = index(3, len(PROPS))
    prop[torch.from_numpy(u[:, 4] < ABSENT_PROP_PROBABILITY)] = ABSENT
    kinds = torch.full((n,), IMAGE_KINDS.index(kind))
    return SceneFactors(kinds, label, background, prop, hue, torch.from_numpy(u.astype(np.float32)))


def sample_captioned_scenes(n: int, seed: int, start: int = 0) -> tuple[SceneFactors, list[str]]:
    """Scenes of all kinds with captions, the training data of a generator.

    Captions may omit the hue, or background and prop; omitted factors vary freely in the image. Each kind of caption
    has a probability of at least 3 %.
    """
    scenes = sample_scenes(n, seed, start)
    u = scenes.u.double().numpy()
    kind = torch.from_numpy(np.searchsorted(np.cumsum(KIND_PROBABILITIES), u[:, 6], side="right"))
    needs_prop = _is_kind(kind, "prop", "prop texture")
    prop = torch.where(needs_prop, (scenes.u[:, 3] * len(PROPS)).long(), scenes.prop)
    prop[_is_kind(kind, "background", "background texture", "shape")] = ABSENT
    scenes = replace(scenes, kind=kind, prop=prop)
    return scenes, [caption(scenes, i, context=bool(u[i, 7] < 0.8), hue=bool(u[i, 8] < 0.5)) for i in range(n)]


def _is_kind(kind: Tensor, *names: str) -> Tensor:
    """Whether each scene is of one of the kinds."""
    return torch.isin(kind, torch.tensor([IMAGE_KINDS.index(name) for name in names]))
