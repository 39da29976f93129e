"""Rows of the audit of features against what rendering says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from classifier_lens.models.classifier.loaders.shipped import SHIPPED_FOLDER
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.label_features import label_features
from classifier_lens.scripts.evaluate.metric import Metric, Setting, compute_results, configure_run
from classifier_lens.tasks.analysis.label_agreement import CORE, SPURIOUS, UNDECIDED, best_delta

CLEAN_NETWORKS = ("planted_clean", "planted_clean2")
SHORTCUT_NETWORKS = ("planted_background_shortcut", "planted_background_shortcut2")
FEATURES_PER_CLASS = 3  # per class
# Fewer steps and pictures than the task's own, so that 120 features take an hour.
AUDIT_OVERRIDES = (
    "task=spurious_audit", f"task.features_per_class={FEATURES_PER_CLASS}", "parametrization.validation_images=8",
    "parametrization.images_per_result=10", "optimizer.steps=20",
)  # fmt: skip


@cache
def write_ground_truth_labels(setting: Setting, network: str) -> tuple[Path, int]:
    """The file of what rendering says of a network's features, and how many are left out."""
    parts, _ = configure_run(setting, network, AUDIT_OVERRIDES, 1)
    task: Any = parts.task
    side = parts.generator.resolution
    path = Path(setting.outputs) / "labels" / f"{network}-{parts.classifier.digest[:10]}-{FEATURES_PER_CLASS}.csv"
    return path, label_features(parts.classifier, task.training, side, task.cache, FEATURES_PER_CLASS, path)


@cache
def audit_records(setting: Setting, n: int, networks: tuple[str, ...]) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The records of the first labelled features of each network, `n` in all, and how many features are left out."""
    found, left_out = {}, 0
    for network in networks:
        path, unclear = write_ground_truth_labels(setting, network)
        overrides = (*AUDIT_OVERRIDES, "task/annotations=file", f"task.annotations.path={path}", f"seed={setting.seed}")
        given = compute_results(setting, network, overrides, n // len(networks))
        found[network], left_out = [dict(a.record) for a in given if a.record is not None], left_out + unclear
    return found, left_out


def pooled_features(setting: Setting, n: int, networks: tuple[str, ...]) -> tuple[list[float], list[str], str]:
    """The mean r and label of every feature, and how many there are."""
    found, left_out = audit_records(setting, n, networks)
    records = [record for own in found.values() for record in own]
    kinds = [record["label"] for record in records]
    note = f"{len(kinds)} features, {kinds.count(SPURIOUS)} of them spurious; {left_out} unclear and left out"
    return [record["r"] for record in records], kinds, note


def audit_auc(setting: Setting, n: int, networks: tuple[str, ...]) -> Estimate:
    """How often a core feature has a larger mean r than a spurious one (AUC)."""
    r, kinds, note = pooled_features(setting, n, networks)
    if len(set(kinds)) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), note)
    core, other = ([x for x, kind in zip(r, kinds, strict=True) if kind == wanted] for wanted in (CORE, SPURIOUS))

    def auc(rows: Sequence[int], others: Sequence[int]) -> float:
        values = [core[i] for i in rows] + [other[i] for i in others]
        return float(roc_auc_score([1] * len(rows) + [0] * len(others), values))

    return estimates.bootstrap_estimate(auc, (len(core), len(other)), note)


def audit_verdicts(setting: Setting, n: int, networks: tuple[str, ...]) -> list[tuple[str, dict[str, Any], str]]:
    """Per feature its network, its record, and what Eq. 6 says with the δ that suits the other networks best, undecided
    where its prompt did not reach it."""
    found, _ = audit_records(setting, n, networks)
    verdicts = []
    for network, own in found.items():
        others = [o for name, records in found.items() if name != network for o in records if o["reached"]]
        delta = best_delta([o["r"] for o in others], [o["label"] for o in others])
        for record in own:
            decided = SPURIOUS if record["r"] < delta else CORE
            verdicts.append((network, record, decided if record["reached"] else UNDECIDED))
    return verdicts


def audit_balanced_accuracy(setting: Setting, n: int, networks: tuple[str, ...]) -> Estimate:
    """Balanced accuracy with δ chosen on the labels of the other networks; a feature that its prompt did not reach is
    not right."""
    given = audit_verdicts(setting, n, networks)
    kinds = np.asarray([record["label"] for _, record, _ in given])
    right = np.asarray([verdict == kind for (_, _, verdict), kind in zip(given, kinds, strict=True)])
    core, other = right[kinds == CORE], right[kinds == SPURIOUS]
    if min(len(core), len(other)) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), f"{len(core)} core, {len(other)} spurious")

    def balanced(rows: Sequence[int], others: Sequence[int]) -> float:
        return float((core[rows].mean() + other[others].mean()) / 2)

    note = f"{core.sum()} of {len(core)} core ones right, {other.sum()} of {len(other)} spurious ones"
    note += f"; {sum(verdict == UNDECIDED for _, _, verdict in given)} not reached"
    return estimates.bootstrap_estimate(balanced, (len(core), len(other)), note)


def audit_shortcut_recall(setting: Setting, n: int, networks: tuple[str, ...]) -> Estimate:
    """How many tied classes have a flagged feature."""
    given = [
        (f"{network}, {r['target']}", v)
        for network, r, v in audit_verdicts(setting, n, networks)
        if has_shortcut(network, r)
    ]
    flagged = {name for name, verdict in given if verdict == SPURIOUS}
    names = sorted({name for name, _ in given})
    return estimates.proportion(
        [name in flagged for name in names], f"not: {'; '.join(set(names) - flagged) or 'none'}"
    )


def has_shortcut(network: str, record: Mapping[str, Any]) -> bool:
    """Whether the class of a feature was tied to a cue in the network's training pictures."""
    config = json.loads((SHIPPED_FOLDER / network / "config.json").read_text())
    return record["target"] in config["shortcut_strength"]


def audit_false_positive_rate(setting: Setting, n: int, networks: tuple[str, ...]) -> Estimate:
    """How many features of the clean networks are flagged."""
    return estimates.proportion(
        [verdict == SPURIOUS for name, _, verdict in audit_verdicts(setting, n, networks) if name in CLEAN_NETWORKS]
    )


ALL_NETWORKS = (*CLEAN_NETWORKS, *SHORTCUT_NETWORKS)
ROWS = (
    Metric("planted.audit_auc", partial(audit_auc, networks=ALL_NETWORKS), 120, "", 0.90),
    Metric(
        "planted.audit_accuracy",
        partial(audit_balanced_accuracy, networks=ALL_NETWORKS),
        120,
        "%",
        0.85,
        interval_threshold=0.75,
    ),
    Metric("planted.audit_tied", partial(audit_shortcut_recall, networks=ALL_NETWORKS), 120, "%", 1.0),
    Metric(
        "planted.audit_false_alarms", partial(audit_false_positive_rate, networks=ALL_NETWORKS), 120, "%", 0.10, False
    ),
)
