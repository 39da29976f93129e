"""Agreement of verdicts with annotations, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from classifier_lens.runner.types import UserError
from classifier_lens.tasks.analysis.label_agreement import (
    agreement,
    balanced_accuracy,
    best_delta,
    calibrate_delta,
)

# Core features' r, and spurious ones', overlapping in one pair of six.
R = [0.30, 0.20, 0.04, 0.06, 0.01]
LABELS = ["core", "core", "core", "spurious", "spurious"]


def record(
    r: float,
    annotation: str | None,
    group: str = "medium",
    animate: bool = True,
    digest: str = "n",
    activated: bool = True,
) -> Any:
    return {
        "r": r, "annotation": annotation, "group": group, "animate": animate, "classifier_digest": digest,
        "activated": activated,
    }  # fmt: skip


def test_the_middle_of_the_best_thresholds_is_taken() -> None:
    assert balanced_accuracy(R, LABELS, 0.05) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert balanced_accuracy(R, LABELS, 0.1) == pytest.approx((2 / 3 + 1) / 2)
    assert best_delta(R, LABELS) == pytest.approx((0.06 + 0.20) / 2)
    assert best_delta([0.0, 0.4], ["spurious", "core"]) == pytest.approx(0.2)
    with pytest.raises(UserError, match="all 2 annotations are core; both kinds are needed"):
        best_delta([0.1, 0.2], ["core", "core"])


def test_agreement_in_all_and_by_group() -> None:
    rows = [record(r, label) for r, label in zip(R, LABELS, strict=True)]
    rows += [record(0.5, "core", "unbiased", animate=False), record(0.02, "core", "unbiased"), record(0.9, None)]
    rows += [record(0.0, "core", "biased", activated=False)]
    found = agreement(rows, 0.05)
    table = {row["group"]: row for row in found["agreement"]}
    assert list(table) == ["all", "medium", "animate, medium", "unbiased", "inanimate, unbiased", "animate, unbiased"]
    medium = table["medium"]
    assert medium["features"] == 5 and medium["spurious"] == 2 and medium["accuracy"] == pytest.approx(3 / 5)
    assert medium["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert medium["auc"] == pytest.approx(5 / 6), "five of the six pairs lie in the right order"
    # Said core, spurious: 3, 2; so are they; by chance 0.6 · 0.6 + 0.4 · 0.4 agree.
    assert medium["kappa"] == pytest.approx((0.6 - 0.52) / (1 - 0.52))
    assert table["all"]["features"] == 7
    assert table["unbiased"] == {
        "group": "unbiased", "features": 2, "spurious": 0, "accuracy": 0.5, "balanced_accuracy": None, "kappa": None,
        "auc": None,
    }  # fmt: skip
    curve = {row["delta"]: row["balanced_accuracy"] for row in found["delta_curve"]}
    assert curve[0.05] == table["all"]["balanced_accuracy"] and curve[0.0] == 0.5
    assert agreement([record(0.9, None), record(0.9, "core", activated=False)], 0.05) == {}


def test_delta_is_chosen_on_other_classifiers(tmp_path: Path) -> None:
    rows = [record(r, label, digest="other") for r, label in zip(R, LABELS, strict=True)]
    folder, empty = tmp_path / "run", tmp_path / "empty"
    folder.mkdir()
    rows += [record(0.9, None, digest="other"), record(0.0, "core", digest="other", activated=False)]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert calibrate_delta([str(folder)], "own") == pytest.approx(0.13)
    with pytest.raises(UserError, match="is an audit of this classifier"):
        calibrate_delta([str(folder)], "other")
    with pytest.raises(UserError, match="holds no annotated features"):
        calibrate_delta([str(folder), str(empty)], "own")
    for line in (
        '{"annotation": "core", "activated": true}',
        '{"annotation": ["x"], "activated": true, "r": "a", "classifier_digest": 3}',
        "3",
    ):
        (folder / "results.jsonl").write_text(f"{line}\n")
        with pytest.raises(UserError, match="holds no annotated features"):
            calibrate_delta([str(folder)], "own")
    for content in ("[" * 100_000, "{", "\x00"):
        (folder / "results.jsonl").write_text(content)
        with pytest.raises(UserError, match="is not JSON"):
            calibrate_delta([str(folder)], "own")
