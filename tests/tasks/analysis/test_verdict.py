"""Verdicts and their intervals, by hand."""

from __future__ import annotations

from classifier_lens.tasks.analysis.verdict import bootstrap_interval, verdict


def test_an_interval_holds_the_mean_and_is_a_point_for_equal_values() -> None:
    assert bootstrap_interval([0.2, 0.2, 0.2]) == (0.2, 0.2)
    low, high = bootstrap_interval([0.0, 0.1] * 20)
    assert 0.02 < low < 0.05 < high < 0.08 and (low, high) == bootstrap_interval([0.0, 0.1] * 20)
    assert bootstrap_interval([0.0, 0.1] * 200)[0] > low, "more pictures, a narrower one"


def test_a_verdict_is_given_where_the_interval_allows_it() -> None:
    assert [verdict(low, high, 0.1) for low, high in ((0.0, 0.09), (0.0, 0.1), (0.05, 0.2), (0.1, 0.2))] == [
        "spurious", "undecided", "undecided", "core",
    ]  # fmt: skip
