"""Sampling of scenes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from classifier_lens.data.planted import (
    ABSENT,
    SceneFactors,
    sample_captioned_scenes,
    sample_scenes,
)


def same(a: SceneFactors, b: SceneFactors) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)


@pytest.mark.parametrize(
    "drawing", [sample_scenes, lambda n, seed, start=0: sample_captioned_scenes(n, seed, start)[0]]
)
def test_any_part_of_a_split_can_be_sampled_alone(drawing: Callable[..., SceneFactors]) -> None:
    whole = drawing(100, 5)
    assert same(drawing(10, 5), whole[:10])
    assert same(drawing(37, 5, 63), whole[63:])


def test_seeds_give_different_scenes() -> None:
    assert not torch.equal(sample_scenes(8, seed=1).u, sample_scenes(8, seed=2).u)


def test_factors_are_uniform_and_independent() -> None:
    scenes = sample_scenes(20_000, seed=6)
    factors = {
        "label": scenes.label,
        "background": scenes.background,
        "prop": scenes.prop,
        "hue": scenes.hue,
        "size": (scenes.u[:, 12] * 5).long(),
        "column": (scenes.u[:, 13] * 5).long(),
        "row": (scenes.u[:, 14] * 5).long(),
        "flip": (scenes.u[:, 22] < 0.5).long(),
    }
    for name, values in factors.items():
        present = values[values != ABSENT]
        assert chisquare(present.bincount().numpy()).pvalue > 1e-3, name
    for (a, x), (b, y) in combinations(factors.items(), 2):
        table = torch.zeros(int(x.max()) + 2, int(y.max()) + 2)
        table.index_put_((x - ABSENT, y - ABSENT), torch.tensor(1.0), accumulate=True)
        table = table[table.sum(1) > 0][:, table.sum(0) > 0]
        assert chi2_contingency(table.numpy()).pvalue > 1e-3, (a, b)
