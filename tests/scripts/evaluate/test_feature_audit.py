"""Rows of the audit, with features that are written here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from classifier_lens.scripts.evaluate import estimates, feature_audit
from classifier_lens.scripts.evaluate.feature_audit import (
    audit_auc,
    audit_balanced_accuracy,
    audit_false_positive_rate,
    audit_shortcut_recall,
    has_shortcut,
)
from classifier_lens.scripts.evaluate.metric import Setting

SETTING = Setting(0, "cpu", "outputs")
NETWORKS = ("planted_clean", "planted_background_shortcut")


def features(core: Sequence[float], spurious: Sequence[float], target: str) -> list[dict[str, Any]]:
    return [
        {"r": r, "annotation": label, "target": target, "activated": True}
        for label, own in (("core", core), ("spurious", spurious)) for r in own
    ]  # fmt: skip


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """Each network has both kinds; 0.15 suits the tied one and 0.25 the clean one."""
    found = {
        "planted_clean": features([0.3, 0.4], [0.2, 0.05], "viaduct"),
        "planted_background_shortcut": features([0.2, 0.3], [0.1, 0.0], "viaduct") + features([], [0.4], "rock crab"),
    }
    monkeypatch.setattr(feature_audit, "audit_records", lambda *_: (found, 7))
    monkeypatch.setattr(estimates, "NUM_RESAMPLES", 50)  # of intervals, which are tested with the estimates
    return found


def test_the_auc_is_over_all_pairs_of_kinds(audited: dict[str, list[dict[str, Any]]]) -> None:
    found = audit_auc(SETTING, 9, NETWORKS)
    # Core 0.2, 0.3, 0.3, 0.4 against 0.0, 0.05, 0.1, 0.2, 0.4: 3 lie below all core ones, 0.2 and 0.4 tie once each.
    assert found.value == pytest.approx((3 * 4 + 3.5 + 0.5) / 20)
    assert found.low <= found.value <= found.high
    assert found.note == "9 features, 5 of them spurious; 7 ambiguous and left out"
    audited["planted_clean"], audited["planted_background_shortcut"] = features([0.3], [], "viaduct"), []
    assert math.isnan(audit_auc(SETTING, 9, NETWORKS).value)


def test_delta_is_chosen_on_the_other_networks(audited: dict[str, list[dict[str, Any]]]) -> None:
    """With 0.15 for the clean network its 0.2 is missed; with 0.25 for the tied one its 0.2 is flagged."""
    found = audit_balanced_accuracy(SETTING, 9, NETWORKS)
    assert found.note == "3 of 4 core features correct, 3 of 5 spurious ones; 0 not activated"
    assert found.value == pytest.approx((3 / 4 + 3 / 5) / 2)
    alarms = audit_false_positive_rate(SETTING, 9, NETWORKS)
    assert alarms.value == pytest.approx(1 / 4), "what is flagged on the clean network, whatever it is"


def test_features_that_were_not_reached_are_neither_right_nor_flagged(audited: dict[str, list[dict[str, Any]]]) -> None:
    """The clean network's 0.4 was right and its 0.05 flagged; without them 0.25 still suits it, and 0.15 the others."""
    for record in audited["planted_clean"]:
        record["activated"] = record["r"] not in (0.4, 0.05)
    found = audit_balanced_accuracy(SETTING, 9, NETWORKS)
    assert found.note == "2 of 4 core features correct, 2 of 5 spurious ones; 2 not activated"
    assert audit_false_positive_rate(SETTING, 9, NETWORKS).value == 0
    assert audit_auc(SETTING, 9, NETWORKS).value == pytest.approx((3 * 4 + 3.5 + 0.5) / 20), "of all"


def test_every_class_with_a_shortcut_should_have_a_flagged_feature(audited: dict[str, list[dict[str, Any]]]) -> None:
    found = audit_shortcut_recall(SETTING, 9, NETWORKS)
    assert found.value == 0.5 and found.note == "not flagged: planted_background_shortcut, rock crab", (
        "its one feature has 0.4"
    )


def test_ties_are_read_from_the_networks_own_file() -> None:
    assert has_shortcut("planted_background_shortcut", {"target": "viaduct"}) and not has_shortcut(
        "planted_background_shortcut", {"target": "fireboat"}
    )
    assert not has_shortcut("planted_clean", {"target": "viaduct"})
