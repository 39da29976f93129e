"""The feature attack: how far it may go, and that it goes the right way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from classifier_lens.tasks.units.addressing import FEATURES, Unit, activation
from classifier_lens.tasks.units.feature_attack import FeatureAttack
from tests.tasks.tiny import SIDE, Colours, Maps, classifier_of, colour

UNITS = [Unit(FEATURES, 0), Unit("early", 3), Unit("head.in", 2)]


@pytest.fixture
def image() -> Tensor:
    """With values at both ends of the range."""
    return (torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 0.5).clamp(0, 1)


@pytest.mark.parametrize("unit", UNITS, ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("radius", [0.05, 0.5, 50.0])
def test_a_unit_is_moved_as_asked_within_the_radius(image: Tensor, unit: Unit, sign: float, radius: float) -> None:
    classifier, given = classifier_of(Maps()), image.clone()
    changed = FeatureAttack(radius, 0.2, 12)(classifier, image, unit, sign)
    assert torch.equal(image, given) and changed.shape == image.shape and not changed.requires_grad
    assert (changed - image).norm() <= radius + 1e-5 and changed.min() >= 0 and changed.max() <= 1
    before, after = activation(classifier, torch.stack([image, changed]), unit).tolist()
    assert sign * (after - before) > 1e-4


def test_a_larger_radius_moves_it_further(image: Tensor) -> None:
    classifier = classifier_of(Maps())
    attacked = [FeatureAttack(radius, 0.2, 12)(classifier, image, UNITS[0], 1.0) for radius in (0.05, 0.5, 2.0)]
    near, middle, far = activation(classifier, torch.stack(attacked), UNITS[0]).tolist()
    assert near < middle < far


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_steps_change_nothing(image: Tensor, sign: float) -> None:
    changed = FeatureAttack(1.0, 0.2, 0)(classifier_of(Maps()), image, UNITS[0], sign)
    assert torch.equal(changed, image) and changed is not image


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_steps_by_hand(sign: float) -> None:
    """The mean red has the same gradient in all 64 red values: a step of length s changes each by s / 8."""
    classifier = classifier_of(Colours(torch.eye(3).tolist()))
    start = colour(0.5, 0.5, 0.5)
    two = FeatureAttack(2.0, 0.4, 2)(classifier, start, Unit(FEATURES, 0), sign)
    torch.testing.assert_close(two, colour(0.5 + sign * 2 * 0.4 / 8, 0.5, 0.5))
    held = FeatureAttack(0.6, 0.4, 2)(classifier, start, Unit(FEATURES, 0), sign)
    torch.testing.assert_close(held, colour(0.5 + sign * 0.6 / 8, 0.5, 0.5))
    assert (held - start).norm().item() == pytest.approx(0.6)
    ended = FeatureAttack(9.0, 1.0, 9)(classifier, start, Unit(FEATURES, 0), sign)
    torch.testing.assert_close(ended, colour(0.5 + sign * 0.5, 0.5, 0.5))


def test_a_unit_without_a_gradient_leaves_the_picture_as_it_is(image: Tensor) -> None:
    network = Maps()
    with torch.no_grad():
        network.maps.weight[1] = 0.0
    changed = FeatureAttack(1.0, 0.2, 3)(classifier_of(network), image, Unit(FEATURES, 1), 1.0)
    assert torch.equal(changed, image) and not math.isnan(changed.sum())


def test_it_works_where_gradients_are_switched_off(image: Tensor) -> None:
    classifier = classifier_of(Maps())
    with torch.no_grad():
        inside = FeatureAttack(0.5, 0.2, 3)(classifier, image, UNITS[0], 1.0)
    assert torch.equal(inside, FeatureAttack(0.5, 0.2, 3)(classifier, image, UNITS[0], 1.0))
