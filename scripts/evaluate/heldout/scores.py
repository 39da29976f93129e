"""Scores of what a tool finds in the networks of the held-out suite. Pure functions of effects and findings.

A shortcut counts as learned, absent or unclear by its exact effect, whatever the training images were like. Unclear
ones count neither for nor against a tool.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.heldout.exact_effects import ABSENT_EFFECT, LEARNED_EFFECT, Cell, Effects


@dataclass(frozen=True)
class NetworkTruth:
    """A network's planted shortcuts, empty for a clean twin, and its exact effects."""

    shortcuts: Collection[Cell]
    effects: Effects

    def learned(self) -> list[Cell]:
        """The planted shortcuts that the network has learned."""
        return [cell for cell in self.shortcuts if self.effects[cell] >= LEARNED_EFFECT]

    def classes_without_shortcut(self) -> list[str]:
        """The classes on which no planted shortcut has an effect."""
        classes = dict.fromkeys(cell.class_name for cell in self.effects)
        tied = {cell.class_name for cell in self.shortcuts if self.effects[cell] >= ABSENT_EFFECT}
        return [name for name in classes if name not in tied]


Truth = Mapping[str, NetworkTruth]  # by network
Findings = Mapping[tuple[str, str], Sequence[tuple[str, str]]]  # (network, class) -> (factor, value) of each finding
EstimatedEffects = Mapping[str, Effects]  # by network


def learned_rate(truth: Truth) -> Estimate:
    """The share of planted shortcuts that are learned. The note has the numbers of unclear and absent ones."""
    effects = [network.effects[cell] for network in truth.values() for cell in network.shortcuts]
    absent = sum(effect < ABSENT_EFFECT for effect in effects)
    learned = [effect >= LEARNED_EFFECT for effect in effects]
    return _share(learned, f"{len(effects) - sum(learned) - absent} unclear, {absent} absent, of {len(effects)}")


def recall(truth: Truth, findings: Findings) -> Estimate:
    """The share of learned shortcuts for whose class a finding names the factor. The note has the missed ones."""
    hits = {
        (network, cell): cell.factor in [factor for factor, _ in findings.get((network, cell.class_name), ())]
        for network, cell in _learned(truth)
    }
    missed = [f"{network} {cell.class_name}: {cell.value}" for (network, cell), hit in hits.items() if not hit]
    return _share(list(hits.values()), f"missed: {'; '.join(missed) or 'none'}")


def right_values(truth: Truth, findings: Findings) -> Estimate:
    """The share of the learned shortcuts that are found, see `recall`, for which a finding names the value, too. The
    note has the others."""
    hits = {}
    for network, cell in _learned(truth):
        class_findings = findings.get((network, cell.class_name), ())
        if cell.factor in [factor for factor, _ in class_findings]:
            hits[network, cell] = (cell.factor, cell.value) in class_findings
    wrong = [f"{network} {cell.class_name}: {cell.value}" for (network, cell), hit in hits.items() if not hit]
    return _share(list(hits.values()), f"wrong: {'; '.join(wrong) or 'none'}")


def false_alarms(truth: Truth, findings: Findings) -> Estimate:
    """The share of the classes without a shortcut for which a finding names a value without an effect.

    A class is left out if all its findings name values with an effect, of another cause than a planted shortcut.
    """
    alarms = {}
    for network, network_truth in truth.items():
        for name in network_truth.classes_without_shortcut():
            class_findings = [Cell(name, *finding) for finding in findings.get((network, name), ())]
            wrong = [cell for cell in class_findings if network_truth.effects[cell] < ABSENT_EFFECT]
            if wrong or not class_findings:
                alarms[network, name] = wrong
    texts = [
        f"{network} {name}: {', '.join(c.value for c in cells)}" for (network, name), cells in alarms.items() if cells
    ]
    return _share([bool(cells) for cells in alarms.values()], f"false: {'; '.join(texts) or 'none'}")


def effect_difference(truth: Truth, estimated: EstimatedEffects) -> Estimate:
    """The median absolute difference of estimated and exact effects, over all networks, classes and values."""
    return _over_classes(truth, estimated, lambda exact, estimate: float(np.median(np.abs(exact - estimate))))


def effect_rank_correlation(truth: Truth, estimated: EstimatedEffects) -> Estimate:
    """Spearman's rank correlation of estimated and exact effects, over all networks, classes and values."""
    return _over_classes(truth, estimated, lambda exact, estimate: float(spearmanr(exact, estimate).statistic))


# --- helpers -------------------------------------------------------------------------------------------------


def _learned(truth: Truth) -> list[tuple[str, Cell]]:
    """The learned shortcuts of all networks, with the network."""
    return [(name, cell) for name, network in truth.items() for cell in network.learned()]


def _share(hits: Sequence[bool], note: str) -> Estimate:
    """A share, undefined without any case."""
    return estimates.proportion(hits, note) if hits else estimates.undefined(note)


def _over_classes(
    truth: Truth, estimated: EstimatedEffects, statistic: Callable[[np.ndarray, np.ndarray], float]
) -> Estimate:
    """A statistic of exact and estimated effects. The classes of the networks are resampled, each with all its values,
    whose effects depend on each other; values without an estimate are left out."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for network, effects in estimated.items():
        for cell, effect in effects.items():
            groups.setdefault((network, cell.class_name), []).append((truth[network].effects[cell], effect))
    note = f"{sum(map(len, groups.values()))} effects on {len(groups)} classes"
    if len(groups) < 2:
        return estimates.undefined(note)
    arrays = [np.asarray(group) for group in groups.values()]

    def of_groups(rows: Sequence[int]) -> float:
        exact, estimate = np.concatenate([arrays[row] for row in rows]).T
        return statistic(exact, estimate)

    return estimates.bootstrap_estimate(of_groups, (len(arrays),), note)
