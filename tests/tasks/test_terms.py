"""Objectives' terms by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from runner.types import Response, Scene
from tasks.terms import class_log_prob


class Constant:
    """A network whose logits do not depend on what it sees: probabilities 1/2, 1/4, 1/4."""

    labels: tuple[str, ...] = ("a", "b", "c")
    size = 4
    digest = "constant"

    def __call__(self, images: Tensor) -> Response:
        return Response(torch.tensor([2.0, 1.0, 1.0]).log().expand(len(images), 3), None)


class Level(Constant):
    """Logits (x, 0, 0) with x the mean of a view."""

    def __call__(self, images: Tensor) -> Response:
        level = images.mean(dim=(1, 2, 3))
        return Response(torch.stack([level, torch.zeros_like(level), torch.zeros_like(level)], dim=1), None)


def scene(*levels: tuple[float, ...]) -> Scene:
    """One sample per tuple, one view per level."""
    views = torch.tensor(levels)[:, :, None, None, None].expand(-1, -1, 3, 4, 4)
    return Scene(views[:, 0], views[:, 0], views)


def test_a_constant_network() -> None:
    value = class_log_prob(Constant(), torch.tensor([0, 1]))(scene((0.0, 1.0), (0.5, 0.2)))
    torch.testing.assert_close(value, torch.tensor([math.log(2), math.log(4)]))


def test_views_are_averaged_after_the_logarithm() -> None:
    """−log(e^x / (e^x + 2)) for x = 0 and x = 1, and their mean."""
    at = [math.log((math.exp(x) + 2) / math.exp(x)) for x in (0.0, 1.0)]
    value = class_log_prob(Level(), torch.tensor([0, 0]))(scene((0.0, 1.0), (1.0, 1.0)))
    assert value.tolist() == pytest.approx([sum(at) / 2, at[1]])


def test_lower_means_more_like_the_target() -> None:
    term = class_log_prob(Level(), torch.tensor([0, 1]))
    low, high = term(scene((0.1,), (0.1,))), term(scene((0.9,), (0.9,)))
    assert high[0] < low[0] and high[1] > low[1]
