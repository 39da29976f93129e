"""Effects by hand and against SciPy's tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from classifier_lens.tasks.interventions.effects import (
    Effect,
    contrast,
    factor_effect,
    holm,
    mean_change,
    necessity,
    share,
    smallest_detectable_effect,
    sufficiency,
)

RANDOM = np.random.default_rng(0)
FIRST, SECOND, THIRD = RANDOM.normal(0.5, 0.2, 9), RANDOM.normal(0.2, 0.4, 14), RANDOM.normal(0, 0.1, 6)


def test_a_difference_of_means_is_welchs_test() -> None:
    effect, expected = contrast([FIRST, SECOND], [1, -1]), stats.ttest_ind(FIRST, SECOND, equal_var=False)
    interval = expected.confidence_interval()
    assert effect.value == pytest.approx(FIRST.mean() - SECOND.mean())
    assert effect.p_value == pytest.approx(expected.pvalue)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))


def test_a_mean_change_is_students_test() -> None:
    effect, expected = mean_change(THIRD), stats.ttest_1samp(THIRD, 0)
    interval = expected.confidence_interval()
    assert effect.p_value == pytest.approx(expected.pvalue)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))


def test_values_that_are_all_equal_leave_no_doubt() -> None:
    assert mean_change(np.full(4, 0.5)) == Effect(0.5, 0.5, 0.5, 0.0)
    assert mean_change(np.zeros(4)) == Effect(0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="a group of 1 values has no variance"):
        contrast([FIRST, np.ones(1)], [1, -1])


def test_an_effect_is_averaged_over_the_sets_of_images() -> None:
    values, has = np.array([0.9, 0.7, 0.2, 0.0]), np.array([True, True, False, False])
    similar = np.array([0.3, 0.0, 0.1, 0.0])
    assert factor_effect([(values, has)]).value == pytest.approx(0.8 - 0.1)
    assert factor_effect([(values, has), (similar, ~has)]).value == pytest.approx((0.7 + (0.05 - 0.15)) / 2)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(1), []
    for _ in range(400):
        of_class = random.normal(0.6, 0.3, 8), random.normal(0.1, 0.1, 56)
        similar = random.normal(0.4, 0.2, 8), random.normal(0.1, 0.1, 56)
        sets = [(np.concatenate(s), np.repeat([True, False], [8, 56])) for s in (of_class, similar)]
        effect = factor_effect(sets)
        covered.append(effect.low <= 0.4 <= effect.high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_holms_correction() -> None:
    effects = [Effect(0, 0, 0, p) for p in (0.01, 0.04, 0.03)]
    assert [effect.p_value for effect in holm(effects)] == pytest.approx([0.03, 0.06, 0.06])
    assert [effect.p_value for effect in holm([Effect(0, 0, 0, 0.7)] * 2)] == [1.0, 1.0]


def test_a_share_has_wilsons_interval() -> None:
    half = share(np.array([True, False]))
    assert (half.value, half.count) == (0.5, 2) and (half.low, half.high) == pytest.approx((0.0945, 0.9055), abs=1e-4)
    nothing = share(np.zeros(0, dtype=bool))
    assert np.isnan(nothing.value) and (nothing.low, nothing.high, nothing.count) == (0.0, 1.0, 0)


def test_sufficiency_and_necessity() -> None:
    without, with_concept = (np.array(x, dtype=bool) for x in ([0, 0, 0, 1, 1], [1, 1, 0, 1, 0]))
    assert sufficiency(without, with_concept).value == pytest.approx(2 / 3)  # of the three that were not predicted
    assert necessity(without, with_concept).value == pytest.approx(2 / 3)  # of the three that are predicted


def test_a_detectable_effect_is_detected_with_the_power_that_it_says() -> None:
    """Effects with a known standard error of 0.1: of ten tests at 5 % in all."""
    error = 0.1
    half = stats.norm.ppf(0.975) * error
    size = smallest_detectable_effect([Effect(0, -half, half, 1.0)] * 10, 0.05)
    assert stats.norm.sf(stats.norm.isf(0.0025) - size / error) == pytest.approx(0.8)
