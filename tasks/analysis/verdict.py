"""The verdict of an audit on a feature, core or spurious, from r: the share of its images that the object takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap

CORE, SPURIOUS, UNDECIDED = "core", "spurious", "undecided"


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean; a point if all values are equal."""
    if len(set(values)) == 1:
        return values[0], values[0]
    ends = bootstrap(
        (np.asarray(values),), np.mean, n_resamples=2000, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    return float(ends.low), float(ends.high)


def verdict(low: float, high: float, delta: float) -> str:
    """DiffExplainer, Eq. 6, for the interval of the mean of r: spurious below δ, core from δ on, undecided if it holds
    δ."""
    if high < delta:
        return SPURIOUS
    return CORE if low >= delta else UNDECIDED
