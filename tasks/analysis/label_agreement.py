"""Agreement of an audit's verdicts with human annotations, and the threshold δ calibrated on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypedDict

from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from classifier_lens.runner.result_schema import Label, Record
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.analysis.verdict import CORE, SPURIOUS

DELTAS = tuple(round(0.01 * i, 2) for i in range(31))  # of the curve over δ


class AgreementRow(TypedDict):
    """Agreement of verdicts with human annotations in a group of features. What is undefined for a single kind of
    annotation is None."""

    group: Annotated[str, Label("Group")]
    features: Annotated[int, Label("Features")]
    spurious: Annotated[int, Label("Spurious features")]
    accuracy: Annotated[float, Label("Accuracy")]
    balanced_accuracy: Annotated[float | None, Label("Balanced accuracy")]
    kappa: Annotated[float | None, Label("Cohen's κ")]
    auc: Annotated[float | None, Label("AUC of r")]


class DeltaRow(TypedDict):
    """Balanced accuracy at a threshold δ."""

    delta: Annotated[float, Label("Threshold δ")]
    balanced_accuracy: Annotated[float, Label("Balanced accuracy")]


class Agreement(TypedDict, total=False):
    """What the summary of an audit with annotations holds."""

    agreement: Annotated[list[AgreementRow], Label("Agreement with human annotations")]
    delta_curve: Annotated[list[DeltaRow], Label("Agreement by threshold δ")]


def balanced_accuracy(r: Sequence[float], annotations: Sequence[str], delta: float) -> float:
    """Balanced accuracy of the verdict "spurious if r < δ" against human annotations."""
    verdicts = [SPURIOUS if value < delta else CORE for value in r]
    return float(balanced_accuracy_score(list(annotations), verdicts))


def best_delta(r: Sequence[float], annotations: Sequence[str]) -> float:
    """The δ with the highest balanced accuracy among the midpoints of neighboring values of r, the median one of ties.
    Raises UserError if all annotations are equal."""
    if len(set(annotations)) < 2:
        raise UserError(
            f"task.calibration_runs: all {len(annotations)} annotations are {annotations[0]}; both kinds are needed"
        )
    values = sorted(set(r))
    midpoints = [(a + b) / 2 for a, b in pairwise(values)] or values
    scores = [balanced_accuracy(r, annotations, delta) for delta in midpoints]
    best = [delta for delta, score in zip(midpoints, scores, strict=True) if score == max(scores)]
    return best[len(best) // 2]


def calibrate_delta(runs: Sequence[str], classifier_digest: str) -> float:
    """The best δ on the annotated features of other classifiers' audits, given by their run folders; features that
    their prompts do not activate are left out. Raises UserError for a folder without such features, and for an audit of
    the classifier with that digest itself."""
    r, annotations = [], []
    for folder in runs:
        results = Path(folder) / "results.jsonl"
        try:
            lines = results.read_bytes().splitlines() if results.is_file() else []
            records = [line for line in map(json.loads, lines) if _is_annotated_and_activated(line)]
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"task.calibration_runs={folder}: {results.name} is not JSON; the run's own command writes it again"
            ) from error
        if not records:
            raise UserError(
                f"task.calibration_runs={folder}: holds no annotated features; give the run folder of an audit with "
                "task/annotations"
            )
        if any(record["classifier_digest"] == classifier_digest for record in records):
            raise UserError(
                f"task.calibration_runs={folder}: is an audit of this classifier; give audits of other classifiers"
            )
        r += [record["r"] for record in records]
        annotations += [record["annotation"] for record in records]
    return best_delta(r, annotations)


def _is_annotated_and_activated(line: Any) -> bool:
    """Whether a line of results.jsonl is an audit's, of an annotated feature that its prompt activates."""
    return (
        isinstance(line, dict) and line.get("annotation") in (CORE, SPURIOUS) and line.get("activated") is True
        and isinstance(line.get("classifier_digest"), str) and isinstance(line.get("r"), (int, float))
    )  # fmt: skip


def agreement(records: Sequence[Record], delta: float) -> Agreement:
    """Agreement of r with the annotations of the features that their prompts activate: the AUC of r, and of r < δ
    accuracy, balanced accuracy and Cohen's κ, over all features and by group of classes; and balanced accuracy as a
    function of δ. Empty without annotations."""
    annotated = [record for record in records if record["annotation"] is not None and record["activated"]]
    if not annotated:
        return {}
    groups = {"all": annotated}
    for record in annotated:
        groups.setdefault(record["group"], []).append(record)
        groups.setdefault(f"{'animate' if record['animate'] else 'inanimate'}, {record['group']}", []).append(record)
    r, annotations = [record["r"] for record in annotated], [record["annotation"] for record in annotated]
    curve: list[DeltaRow] = [
        {"delta": threshold, "balanced_accuracy": balanced_accuracy(r, annotations, threshold)}
        for threshold in (DELTAS if len(set(annotations)) == 2 else ())
    ]
    return {"agreement": [_agreement_row(name, group, delta) for name, group in groups.items()], "delta_curve": curve}


def _agreement_row(group: str, records: Sequence[Record], delta: float) -> AgreementRow:
    r, annotations = [record["r"] for record in records], [record["annotation"] for record in records]
    verdicts = [SPURIOUS if value < delta else CORE for value in r]
    both = len(set(annotations)) == 2
    return {
        "group": group, "features": len(records), "spurious": annotations.count(SPURIOUS),
        "accuracy": sum(a == b for a, b in zip(verdicts, annotations, strict=True)) / len(records),
        "balanced_accuracy": balanced_accuracy(r, annotations, delta) if both else None,
        "kappa": float(cohen_kappa_score(annotations, verdicts)) if both else None,
        "auc": float(roc_auc_score([annotation == CORE for annotation in annotations], r)) if both else None,
    }  # fmt: skip
