"""Tables of a run's page: the lists of mappings in its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from classifier_lens.runner.report.charts import number


@dataclass(frozen=True)
class Table:
    """Rows of a run's summary under a title, ready to be shown."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """A table of every value that is a list of mappings, in the summary's order."""
    return [_table(key, rows) for key, rows in summary.items() if _is_table(rows)]


def words(key: str) -> str:
    """A key as words: "class_log_prob" -> "class log prob"."""
    return key.replace("_", " ")


def _is_table(value: Any) -> bool:
    """Whether a value is a list of mappings."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A list of mappings with the same keys, one row each; the ends of an interval are joined."""
    columns = list(rows[0])
    return Table(words(title), [words(c) for c in columns], [[_cell(row.get(c)) for c in columns] for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "–".join(number(end) for end in value)
    return number(value)
