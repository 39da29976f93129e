"""Metrics of feature audits against ground truth from rendering."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from classifier_lens.models.classifier.loaders.shipped import SHIPPED_FOLDER
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.label_features import label_features
from classifier_lens.scripts.evaluate.metric import Metric, Setting, compute_results, configure_run
from classifier_lens.tasks.analysis.label_agreement import best_delta
from classifier_lens.tasks.analysis.verdict import CORE, SPURIOUS, UNDECIDED

CLEAN_NETWORKS = ("planted_clean", "planted_clean2")
SHORTCUT_NETWORKS = ("planted_background_shortcut", "planted_background_shortcut2")
FEATURES_PER_CLASS = 3
# Fewer steps and images than the defaults of the task, so that 120 features take an hour.
AUDIT_OVERRIDES = (
    "task=spurious_audit", f"task.features_per_class={FEATURES_PER_CLASS}", "parametrization.validation_images=8",
    "parametrization.images_per_result=10", "optimizer.steps=20",
)  # fmt: skip


@cache
def write_ground_truth_labels(setting: Setting, network: str) -> tuple[Path, int]:
    """A file with ground-truth labels of a network's features, and the number of features left out."""
    parts, _ = configure_run(setting, network, AUDIT_OVERRIDES, 1)
    task: Any = parts.task
    side = parts.generator.resolution
    path = Path(setting.outputs) / "labels" / f"{network}-{parts.classifier.digest[:10]}-{FEATURES_PER_CLASS}.csv"
    return path, label_features(parts.classifier, task.training, side, task.cache, FEATURES_PER_CLASS, path)


@cache
def audit_records(setting: Setting, n: int, networks: tuple[str, ...]) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The records of the first labeled features of each network, `n` in total, and the number of features left out."""
    records_by_network, left_out = {}, 0
    for network in networks:
        path, num_unclear = write_ground_truth_labels(setting, network)
        overrides = (*AUDIT_OVERRIDES, "task/annotations=file", f"task.annotations.path={path}", f"seed={setting.seed}")
        results = compute_results(setting, network, overrides, n // len(networks))
        records_by_network[network], left_out = (
            [dict(result.record) for result in results if result.record is not None],
            left_out + num_unclear,
        )
    return records_by_network, left_out


def pooled_features(setting: Setting, n: int, networks: tuple[str, ...]) -> tuple[list[float], list[str], str]:
    """The mean r and the label of every feature, and a note with their numbers."""
    records_by_network, left_out = audit_records(setting, n, networks)
    records = [record for network_records in records_by_network.values() for record in network_records]
    labels = [record["annotation"] for record in records]
    note = f"{len(labels)} features, {labels.count(SPURIOUS)} of them spurious; {left_out} ambiguous and left out"
    return [record["r"] for record in records], labels, note


def audit_auc(setting: Setting, n: int, networks: tuple[str, ...]) -> Estimate:
    """The area under the ROC curve: how often a core feature has a larger mean r than a spurious one."""
    r, labels, note = pooled_features(setting, n, networks)
    core, spurious = ([x for x, label in zip(r, labels, strict=True) if label == kind] for kind in (CORE, SPURIOUS))
    return estimates.roc_auc(core, spurious, note)


def audit_verdicts(setting: Setting, n: int, networks: tuple[str, ...]) -> list[tuple[str, dict[str, Any], str]]:
    """Per feature its network, its record, and the verdict of Eq. 6 with the δ that is best for the other networks;
    undecided if its prompt did not activate it."""
    records_by_network, _ = audit_records(setting, n, networks)
    verdicts = []
    for network, network_records in records_by_network.items():
        others = [
            other
            for name, records in records_by_network.items()
            if name != network
            for other in records
            if other["activated"]
        ]
        delta = best_delta([other["r"] for other in others], [other["annotation"] for other in others])
        for record in network_records:
            verdict = SPURIOUS if record["r"] < delta else CORE
            verdicts.append((network, record, verdict if record["activated"] else UNDECIDED))
    return verdicts


def audit_balanced_accuracy(setting: Setting, n: int, networks: tuple[str, ...]) -> Estimate:
    """Balanced accuracy with δ selected on the labels of the other networks; a feature that its prompt did not activate
    counts as wrong."""
    verdicts = audit_verdicts(setting, n, networks)
    labels = np.asarray([record["annotation"] for _, record, _ in verdicts])
    is_correct = np.asarray([verdict == label for (_, _, verdict), label in zip(verdicts, labels, strict=True)])
    core, other = is_correct[labels == CORE], is_correct[labels == SPURIOUS]
    if min(len(core), len(other)) < 2:
        return estimates.undefined(f"{len(core)} core, {len(other)} spurious")

    def balanced(rows: Sequence[int], others: Sequence[int]) -> float:
        return float((core[rows].mean() + other[others].mean()) / 2)

    note = f"{core.sum()} of {len(core)} core features correct, {other.sum()} of {len(other)} spurious ones"
    note += f"; {sum(verdict == UNDECIDED for _, _, verdict in verdicts)} not activated"
    return estimates.bootstrap_estimate(balanced, (len(core), len(other)), note)


def audit_shortcut_recall(setting: Setting, n: int, networks: tuple[str, ...]) -> Estimate:
    """Share of classes with a shortcut that have a flagged feature."""
    class_verdicts = [
        (f"{network}, {record['target']}", verdict)
        for network, record, verdict in audit_verdicts(setting, n, networks)
        if has_shortcut(network, record)
    ]
    flagged = {name for name, verdict in class_verdicts if verdict == SPURIOUS}
    names = sorted({name for name, _ in class_verdicts})
    return estimates.proportion(
        [name in flagged for name in names], f"not flagged: {'; '.join(set(names) - flagged) or 'none'}"
    )


def has_shortcut(network: str, record: Mapping[str, Any]) -> bool:
    """Whether the class of a feature has a shortcut in the network's training images."""
    config = json.loads((SHIPPED_FOLDER / network / "config.json").read_text())
    return record["target"] in config["shortcut_strength"]


def audit_false_positive_rate(setting: Setting, n: int, networks: tuple[str, ...]) -> Estimate:
    """Share of the features of the clean networks that are flagged."""
    return estimates.proportion(
        [verdict == SPURIOUS for name, _, verdict in audit_verdicts(setting, n, networks) if name in CLEAN_NETWORKS]
    )


ALL_NETWORKS = (*CLEAN_NETWORKS, *SHORTCUT_NETWORKS)
METRICS = (
    Metric("planted.audit_auc", partial(audit_auc, networks=ALL_NETWORKS), 120, "", 0.90),
    Metric(
        "planted.audit_balanced_accuracy",
        partial(audit_balanced_accuracy, networks=ALL_NETWORKS),
        120,
        "%",
        0.85,
        interval_threshold=0.75,
    ),
    Metric("planted.audit_shortcut_recall", partial(audit_shortcut_recall, networks=ALL_NETWORKS), 120, "%", 1.0),
    Metric(
        "planted.audit_false_positive_rate",
        partial(audit_false_positive_rate, networks=ALL_NETWORKS),
        120,
        "%",
        0.10,
        False,
    ),
)
