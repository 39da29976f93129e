"""How far a verdict on features agrees with labels of theirs: statistics of the share r that an object takes up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from classifier_lens.runner.types import UserError

CORE, SPURIOUS, UNDECIDED = "core", "spurious", "undecided"
DELTAS = tuple(round(0.01 * i, 2) for i in range(31))  # of the curve over δ


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval (percentile) of the mean; a point where all values are equal."""
    if len(set(values)) == 1:
        return values[0], values[0]
    ends = bootstrap(
        (np.asarray(values),), np.mean, n_resamples=2000, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    return float(ends.low), float(ends.high)


def verdict(low: float, high: float, delta: float) -> str:
    """DiffExplainer, Eq. 6, where the interval of the mean of r allows it: spurious below δ, core from δ on."""
    if high < delta:
        return SPURIOUS
    return CORE if low >= delta else UNDECIDED


def balanced_accuracy(r: Sequence[float], labels: Sequence[str], delta: float) -> float:
    """Of "spurious where the mean of r is below δ": the mean of the shares of both labels that are right."""
    said = [SPURIOUS if value < delta else CORE for value in r]
    return float(balanced_accuracy_score(list(labels), said))


def best_delta(r: Sequence[float], labels: Sequence[str]) -> float:
    """The δ with the highest balanced accuracy among the middles of neighbouring values of r, the middle one of those
    that are equally good. Raises UserError where only one label occurs."""
    if len(set(labels)) < 2:
        raise UserError(f"task.calibration_runs: all {len(labels)} labels are {labels[0]}; both kinds wanted")
    values = sorted(set(r))
    middles = [(a + b) / 2 for a, b in pairwise(values)] or values
    scores = [balanced_accuracy(r, labels, delta) for delta in middles]
    best = [delta for delta, score in zip(middles, scores, strict=True) if score == max(scores)]
    return best[len(best) // 2]


def calibrate_delta(runs: Sequence[str], classifier_digest: str) -> float:
    """δ by the labelled features of other networks that their prompts reached: of the run folders of audits. Raises
    UserError for a folder without such features, and for one that audits the network of that digest itself."""
    r, labels = [], []
    for folder in runs:
        results = Path(folder) / "results.jsonl"
        try:
            lines = results.read_bytes().splitlines() if results.is_file() else []
            records = [line for line in map(json.loads, lines) if _is_annotated_and_activated(line)]
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"task.calibration_runs={folder}: {results.name} is not JSON; its command writes it anew"
            ) from error
        if not records:
            raise UserError(
                f"task.calibration_runs={folder}: holds no labelled features; wanted is an audit's run folder"
            )
        if any(record["network"] == classifier_digest for record in records):
            raise UserError(f"task.calibration_runs={folder}: audits this classifier; δ is chosen on other ones")
        r += [record["r"] for record in records]
        labels += [record["label"] for record in records]
    return best_delta(r, labels)


def _is_annotated_and_activated(line: Any) -> bool:
    """Whether a line of an audit's results is of a feature that people labelled and that its prompt reached."""
    return (
        isinstance(line, dict) and line.get("label") in (CORE, SPURIOUS) and line.get("reached") is True
        and isinstance(line.get("network"), str) and isinstance(line.get("r"), (int, float))
    )  # fmt: skip


def agreement(records: Sequence[Mapping[str, Any]], delta: float) -> dict[str, Any]:
    """Of the labelled features that their prompts reached: how well the mean of r tells spurious ones (AUC), and, cut
    at δ, balanced accuracy and Cohen's κ, in all and by group of class; balanced accuracy over δ. Empty where there are
    none."""
    known = [record for record in records if record["label"] is not None and record["reached"]]
    if not known:
        return {}
    groups = {"all": known}
    for record in known:
        groups.setdefault(record["group"], []).append(record)
        groups.setdefault(f"{'animate' if record['animate'] else 'inanimate'}, {record['group']}", []).append(record)
    table = [{"group": name, **_compare(own, delta)} for name, own in groups.items()]
    r, labels = [record["r"] for record in known], [record["label"] for record in known]
    curve = [
        {"delta": threshold, "balanced_accuracy": balanced_accuracy(r, labels, threshold)}
        for threshold in (DELTAS if len(set(labels)) == 2 else ())
    ]
    return {"agreement": table, "curve": curve}


def _compare(records: Sequence[Mapping[str, Any]], delta: float) -> dict[str, Any]:
    """One group; what only two labels define is None where there is one."""
    r, labels = [record["r"] for record in records], [record["label"] for record in records]
    said = [SPURIOUS if value < delta else CORE for value in r]
    both = len(set(labels)) == 2
    return {
        "features": len(records), "spurious": labels.count(SPURIOUS),
        "agree": sum(a == b for a, b in zip(said, labels, strict=True)) / len(records),
        "balanced_accuracy": balanced_accuracy(r, labels, delta) if both else None,
        "kappa": float(cohen_kappa_score(labels, said)) if both else None,
        "auc": float(roc_auc_score([label == CORE for label in labels], r)) if both else None,
    }  # fmt: skip
