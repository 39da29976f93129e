"""Tables of a page: the lists and mappings in a summary or in a result, under labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from classifier_lens.runner.report.labels import value_label
from classifier_lens.runner.report.wording import format_number


@dataclass(frozen=True)
class Table:
    """Rows under a title. columns: the label of each and whether it holds numbers, which are aligned to the right."""

    title: str
    columns: list[tuple[str, bool]]
    rows: list[list[str]]


def plain_values(
    values: Mapping[str, Any], labels: Mapping[str, str], without: frozenset[str] = frozenset()
) -> list[tuple[str, str]]:
    """Label and text of every number, text and truth value. without: keys that are left out."""
    return [
        (value_label(key, labels), format_number(value))
        for key, value in values.items()
        if key not in without and (value is None or isinstance(value, (bool, int, float, str)))
    ]


def tables(values: Mapping[str, Any], labels: Mapping[str, str], without: frozenset[str] = frozenset()) -> list[Table]:
    """A table of each list of mappings and of each mapping that has a label. Mappings without a label, whose keys are
    names of classes or units, are the rows of one table. without: keys that are left out."""
    remaining = {key: value for key, value in values.items() if key not in without}
    unlabeled = {key: value for key, value in remaining.items() if isinstance(value, Mapping) and key not in labels}
    result = [] if not unlabeled else [_table("By name", _with_names(unlabeled, labels), labels)]
    for key, value in remaining.items():
        if key not in unlabeled and (rows := list(_rows(value, labels))):
            result.append(_table(value_label(key, labels), rows, labels))
    return result


def _rows(value: Any, labels: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """Mappings, one per row: those of a list, those of a mapping by name, or its plain values."""
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        yield from value
    elif isinstance(value, Mapping):
        nested = {name: row for name, row in value.items() if isinstance(row, Mapping)}
        yield from _with_names(nested or {name: {"value": plain} for name, plain in value.items()}, labels)


def _with_names(rows: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows whose first value is their name."""
    return [{"name": value_label(name, labels), **row} for name, row in rows.items()]


def _table(title: str, rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Table:
    """A row per mapping and a column per key of any of them; the ends of an interval are joined."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = [(value_label(key, labels), _is_numeric([row.get(key) for row in rows])) for key in keys]
    return Table(title, columns, [[_cell(row.get(key)) for key in keys] for row in rows])


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(value is None or isinstance(value, (int, float, list)) for value in values)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "–".join(f"{end:.2f}" if isinstance(end, float) else format_number(end) for end in value)
    return format_number(value)
