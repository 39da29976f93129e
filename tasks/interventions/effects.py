"""Effects of interventions on a classifier's output: differences of means with intervals, corrected for how many were
tried, and the probabilities of necessity and sufficiency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest, norm, t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Effect:
    """A mean change. low, high: its 95 % interval; p_value: two-sided, of no change."""

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Share:
    """A share of images with its 95 % Wilson interval. count: the number of images, 0 without any; the share is nan
    then, and the interval is [0, 1]."""

    value: float
    low: float
    high: float
    count: int


def contrast(groups: Sequence[np.ndarray], weights: Sequence[float]) -> Effect:
    """The sum of weight · mean over independent groups of values (Welch 1947): the degrees of freedom of its t
    distribution are those of Satterthwaite's approximation. Raises ValueError for a group of fewer than two values,
    which has no variance."""
    if small := [len(group) for group in groups if len(group) < 2]:
        raise ValueError(f"a group of {small[0]} values has no variance")
    value = sum(weight * group.mean() for group, weight in zip(groups, weights, strict=True))
    parts = [weight**2 * group.var(ddof=1) / len(group) for group, weight in zip(groups, weights, strict=True)]
    variance = sum(parts)
    if variance == 0:
        return Effect(float(value), float(value), float(value), 0.0 if value else 1.0)
    freedom = variance**2 / sum(part**2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True))
    error = variance**0.5
    margin = t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    return Effect(
        float(value), float(value - margin), float(value + margin), float(2 * t.sf(abs(value) / error, freedom))
    )


def mean_change(differences: np.ndarray) -> Effect:
    """The mean of paired differences, by Student's t."""
    return contrast([differences], [1.0])


def factor_effect(sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> Effect:
    """The mean over independent sets of images, such as those of a class and those of a similar class, of the
    difference of means: with a concept minus without it. sets: values (n,) and whether each image has the concept."""
    groups, weights = [], []
    for values, has_concept in sets:
        groups += [values[has_concept], values[~has_concept]]
        weights += [1 / len(sets), -1 / len(sets)]
    return contrast(groups, weights)


def holm(effects: Sequence[Effect]) -> list[Effect]:
    """The effects with p-values corrected for their number (Holm 1979): the chance that any of them is below α, if none
    of the concepts has an effect, is at most α."""
    order = sorted(range(len(effects)), key=lambda i: effects[i].p_value)
    corrected, highest = list(effects), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(effects) - rank) * effects[i].p_value))
        corrected[i] = replace(effects[i], p_value=highest)
    return corrected


def share(hits: np.ndarray) -> Share:
    """The share of true values."""
    if not len(hits):
        return Share(float("nan"), 0.0, 1.0, 0)
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    return Share(float(hits.mean()), float(interval.low), float(interval.high), len(hits))


def sufficiency(without: np.ndarray, with_concept: np.ndarray) -> Share:
    """The probability of sufficiency (Pearl 2000, Section 9.2): of the pairs that are not predicted as the class
    without the concept, the share that is with it. without, with_concept: whether each image of a pair is predicted as
    the class."""
    return share(with_concept[~without])


def necessity(without: np.ndarray, with_concept: np.ndarray) -> Share:
    """The probability of necessity: of the pairs that are predicted as the class with the concept, the share that is
    not predicted without it."""
    return share(~without[with_concept])


def smallest_detectable_effect(effects: Sequence[Effect], alpha: float, power: float = 0.8) -> float:
    """The change that the tests of these effects would have detected with this power, median over the effects: with
    Bonferroni's correction of the level α, from the widths of their intervals."""
    errors = np.array([(effect.high - effect.low) / 2 for effect in effects]) / norm.ppf((1 + CONFIDENCE) / 2)
    return float((norm.isf(alpha / (2 * len(effects))) + norm.ppf(power)) * np.median(errors))
