"""Tables of a page, by hand."""

from __future__ import annotations

from classifier_lens.runner.report.tables import plain_values, tables
from classifier_lens.tasks.result_schemas import result_schema

AUDIT = result_schema("spurious_audit")


def test_lists_of_mappings_become_tables_and_plain_values_do_not() -> None:
    rows = [
        {"unit": "f:1", "r_interval": [0.1, 0.25], "auc": None},
        {"unit": "f:2", "r_interval": [0.0, 1.0], "auc": 0.5},
    ]
    (table,) = tables({"results": 2, "shares": [0.1, 0.2], "empty": [], "features": rows}, AUDIT.summary_labels)
    assert table.title == "Features"
    assert table.columns == [("Unit", False), ("95\u00a0% interval of r", True), ("AUC of r", True)]
    assert table.rows == [["f:1", "0.10–0.25", "–"], ["f:2", "0.00–1.00", "0.5"]]
    assert plain_values({"results": 2, "shares": [0.1], "seed": 1}, AUDIT.summary_labels, frozenset({"seed"})) == [
        ("Results", "2")
    ]


def test_mappings_under_names_are_rows_of_one_table_and_those_under_labels_tables_of_their_own() -> None:
    named, labelled = tables(
        {"urn": {"training_max": 1}, "word_means": {"sand": 0.5, "a crab": 2.0}, "crab": {"training_max": 2}},
        result_schema("neuron_vis").labels,
    )
    assert named.columns == [("Name", False), ("Training maximum", True)]
    assert named.rows == [["urn", "1"], ["crab", "2"]]
    assert labelled.title == "Mean activation by words" and labelled.rows == [["sand", "0.5"], ["a crab", "2"]]
