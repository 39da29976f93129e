"""A weighted sum with one value per sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from classifier_lens.runner.optimization.objective import Loss, evaluate
from classifier_lens.runner.types import Scene


def scene(values: list[float]) -> Scene:
    """One pixel per sample, all channels alike."""
    image = torch.tensor(values)[:, None, None, None].expand(-1, 3, 1, 1)
    return Scene(image, image, image[:, None])


def level(scene: Scene) -> Tensor:
    return scene.image.flatten(1).mean(dim=1)


def square(scene: Scene) -> Tensor:
    return level(scene) ** 2


def test_the_total_is_the_weighted_sum_and_parts_are_unweighted() -> None:
    loss = evaluate({"level": (2.0, level), "square": (-0.5, square)}, scene([1.0, 3.0]))
    assert loss.total.tolist() == [2 * 1 - 0.5 * 1, 2 * 3 - 0.5 * 9]
    assert {name: part.tolist() for name, part in loss.terms.items()} == {"level": [1.0, 3.0], "square": [1.0, 9.0]}


def test_a_term_that_averages_over_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"term mean has shape \(\), not one value per sample"):
        evaluate({"mean": (1.0, lambda scene: level(scene).mean())}, scene([1.0, 3.0]))


def test_the_first_bad_term_is_named_per_sample() -> None:
    nan, inf = torch.nan, torch.inf
    loss = Loss(torch.zeros(3), {"a": torch.tensor([0.0, 0.0, nan]), "b": torch.tensor([0.0, inf, inf])})
    assert [loss.non_finite_term(i) for i in range(3)] == [None, "b", "a"]
