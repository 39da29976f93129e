"""Scores of findings, by hand."""

from __future__ import annotations

import math

import pytest

from classifier_lens.scripts.evaluate.heldout.exact_effects import Cell
from classifier_lens.scripts.evaluate.heldout.scores import (
    NetworkTruth,
    effect_difference,
    effect_rank_correlation,
    false_alarms,
    learned_rate,
    recall,
    right_values,
)

SAND, SNOW, FLAG, RED = ("background", "sand"), ("background", "snow"), ("prop", "flag"), ("hue", "red")
VALUES = (SAND, SNOW, FLAG, RED)


def network(shortcuts: dict[Cell, float], others: dict[Cell, float] | None = None) -> NetworkTruth:
    """A network of three classes with these effects of planted shortcuts, and others, and without any further."""
    none = {Cell(name, *value): 0.0 for name in "abc" for value in VALUES}
    return NetworkTruth(list(shortcuts), none | shortcuts | (others or {}))


TRUTH = {
    # Two cues of one class are two shortcuts; one of b is absent, one of c unclear.
    "first": network({Cell("a", *SAND): 0.5, Cell("a", *FLAG): 0.3, Cell("b", *RED): 0.05, Cell("c", *SNOW): 0.2}),
    "second": network({Cell("a", *SNOW): 0.9}, {Cell("b", *SNOW): 0.4, Cell("c", *RED): 0.15}),
}


def test_a_shortcut_is_learned_unclear_or_absent_by_its_effect() -> None:
    estimate = learned_rate(TRUTH)
    assert estimate.value == 3 / 5 and estimate.note == "1 unclear, 1 absent, of 5"


def test_recall_counts_each_learned_shortcut_by_its_factor() -> None:
    found = {("first", "a"): [SAND], ("second", "a"): [SAND, RED]}
    estimate = recall(TRUTH, found)
    assert estimate.value == pytest.approx(2 / 3) and estimate.note == "missed: first a: flag"
    assert 0 < estimate.low < estimate.value < estimate.high < 1
    assert recall(TRUTH, {}).value == 0 and math.isnan(recall({}, {}).value)


def test_words_are_right_if_the_value_of_a_shortcut_that_is_found_is_named() -> None:
    found = {("first", "a"): [SAND], ("second", "a"): [SAND, RED]}
    estimate = right_values(TRUTH, found)
    assert estimate.value == 0.5 and estimate.note == "wrong: second a: snow"
    assert math.isnan(right_values(TRUTH, {}).value)


def test_a_false_alarm_names_a_value_without_an_effect_in_a_class_without_shortcut() -> None:
    assert false_alarms(TRUTH, {}).value == 0  # of b in the first network, and b and c in the second one
    assert false_alarms(TRUTH, {("first", "b"): [RED]}).value == pytest.approx(1 / 3)  # planted, but not learned
    assert false_alarms(TRUTH, {("first", "c"): [SAND], ("first", "a"): [RED]}).value == 0  # classes with a shortcut
    # b hangs on snow and c perhaps on red, of another cause: neither an alarm nor its absence.
    by_product = false_alarms(TRUTH, {("second", "b"): [SNOW], ("second", "c"): [RED]})
    assert by_product.value == 0 and by_product.high > false_alarms(TRUTH, {}).high
    both = false_alarms(TRUTH, {("second", "b"): [SNOW, SAND]})
    assert both.value == pytest.approx(1 / 3) and both.note == "false: second b: sand"


def test_estimates_are_compared_with_the_exact_effects_of_the_same_values() -> None:
    estimated = {
        "second": {Cell("a", *SNOW): 0.7, Cell("b", *SNOW): 0.5, Cell("c", *RED): 0.15, Cell("c", *SAND): -0.1}
    }
    difference = effect_difference(TRUTH, estimated)
    assert difference.value == pytest.approx(0.1) and difference.note == "4 effects on 3 classes"
    for sign in (1, -1):
        signed = {"second": {cell: sign * effect for cell, effect in estimated["second"].items()}}
        assert effect_rank_correlation(TRUTH, signed).value == pytest.approx(sign)
    assert math.isnan(effect_difference(TRUTH, {"second": {Cell("a", *SNOW): 0.7}}).value)
