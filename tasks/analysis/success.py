"""When a result is a success, the numbers that decide it, and how many results of a run are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from classifier_lens.runner.result_schema import StageFields, SuccessFields, SummaryFields

DIRECTION_SIGNS = {"max": 1.0, "min": -1.0}  # of a value that is raised or lowered


class PredictionSuccess(SuccessFields):
    """success_start: whether the initialization was a success before the first step."""

    success_start: bool


def prediction_success(measured: StageFields, target: str) -> PredictionSuccess:
    """Whether the prediction changes to the target, after optimization and at its start. An original that is predicted
    as the target is no success, since nothing can change."""
    before, start, after = (measured["predicted_before"], measured["predicted_start"], measured["predicted_after"])
    confidence = measured["confidence_after"]
    if before == target:
        criterion = f"the original is predicted as {target} already: no change can be found"
    elif after == target:
        criterion = f"predicted as the target, {after} ({confidence[after]:.2f})"
    else:
        criterion = f"predicted as {after} ({confidence[after]:.2f}); target: {target} ({confidence[target]:.2f})"
    return {
        "success": before != target == after, "criterion": criterion, "success_start": before != target == start,
    }  # fmt: skip


def comparison_text(value: float, bound: float, bound_name: str) -> str:
    """A value and the bound that it is compared with: "5.28 < 5.83, the highest activation in training images"."""
    sign = ">" if value > bound else "<" if value < bound else "="
    return f"{value:.4g} {sign} {bound:.4g}, {bound_name}"


def change_success(before: float, after: float, std: float, sign: float, min_change_std: float) -> SuccessFields:
    """Whether a value changes by `min_change_std` standard deviations over the training images, upward (sign 1) or
    downward (sign -1). A value that is the same in all training images (std 0) has no success."""
    change = sign * (after - before)
    required = f"{sign * min_change_std:+.3g} standard deviations over the training images, {std:.4g} each"
    return {
        "success": change >= min_change_std * std and change > 0 and std > 0,
        "criterion": f"{before:.4g} to {after:.4g} (required: {required})",
    }  # fmt: skip


def success_counts(records: Sequence[Mapping[str, Any]]) -> SummaryFields:
    """The number of results, of successes and, where it was measured, of successes before the first step."""
    counts: SummaryFields = {"results": len(records), "successes": sum(bool(r["success"]) for r in records)}
    at_start = [bool(r["success_start"]) for r in records if "success_start" in r]
    if at_start:
        counts["successes_at_start"] = sum(at_start)
    return counts


def success_counts_by(key: str, records: Sequence[Mapping[str, Any]]) -> dict[str, SummaryFields]:
    """`success_counts` of the records that share a value of `key`, in the order of the values' appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(str(record[key]), []).append(record)
    return {value: success_counts(group) for value, group in groups.items()}
