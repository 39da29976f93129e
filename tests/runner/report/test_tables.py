"""Tables of a page, by hand."""

from __future__ import annotations

from classifier_lens.runner.report.tables import tables


def test_lists_of_mappings_become_tables_and_nothing_else_does() -> None:
    rows = [
        {"unit": "f:1", "r_interval": [0.1, 0.25], "auc": None},
        {"unit": "f:2", "r_interval": [0.0, 1.0], "auc": 0.5},
    ]
    (found,) = tables({"answers": 2, "by class": {"a": 1}, "shares": [0.1, 0.2], "empty": [], "core_features": rows})
    assert found.title == "core features" and found.columns == ["unit", "r interval", "auc"]
    assert found.rows == [["f:1", "0.1–0.25", "–"], ["f:2", "0–1", "0.5"]]
