"""Pictures with a table of attributes, as FairFace publishes its faces."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from classifier_lens.data.image_folder import LabeledFiles
from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import Names, Seed
from classifier_lens.runner.files.text import read_text
from classifier_lens.runner.types import UserError

FILE_COLUMN = "file"  # the column with a picture's path, from the table's folder on
TableRows = Sequence[Mapping[str, str]]


def read_table(path: str | Path) -> TableRows:
    """The rows of a table by column name, in the file's order.

    Raises UserError if there is no such file, no column `file`, no row, or a row with too few or too many values.
    """
    path = Path(path).expanduser()
    wanted = f"a CSV file with a column `{FILE_COLUMN}` and columns of attributes"
    text = read_text(f"data.table={path}", path, wanted)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns, rows = reader.fieldnames or (), list(reader)
    except csv.Error as error:
        raise UserError(f"data.table={path}: not CSV text; wanted is {wanted}") from error
    if FILE_COLUMN not in columns or not rows:
        raise UserError(
            f"data.table={path}: has {len(rows)} rows of {', '.join(columns) or 'nothing'}; wanted is {wanted}"
        )
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"data.table={path}: row {line} has not {len(columns)} values, as the first one has")
    return rows


def attributes(rows: TableRows) -> dict[str, tuple[str, ...]]:
    """The columns that can be labels or cues, with the values that occur, sorted."""
    return {column: tuple(sorted({row[column] for row in rows})) for column in rows[0] if column != FILE_COLUMN}


def select_labels(rows: TableRows, label: str, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes: the values that column `label` takes, or `classes`. Raises UserError for others."""
    known = attributes(rows)
    values = known[check_choice("label", label, known)]
    return values if classes is None else tuple(check_choice("classes", name, values) for name in classes)


class FairFace(LabeledFiles):
    """Pictures of a table.

    path: the folder; table: the CSV file in it; label_column: the column that names the class; classes: the values of
    it whose pictures are taken, None for all. Raises UserError if the folder, the table, a column, a class or a picture
    is not there."""

    def __init__(
        self, path: str | Path | None, table: str, label_column: str, classes: Names | None, seed: Seed
    ) -> None:  # fmt: skip
        if not path:
            raise UserError(f"data.path is missing: give the folder of {table}, e.g. data.path=fairface")
        root = Path(path).expanduser()
        rows = read_table(root / table)
        labels = select_labels(rows, label_column, classes)
        files = [(root / row[FILE_COLUMN], row[label_column]) for row in rows if row[label_column] in labels]
        if missing := next((file for file, _ in files if not file.is_file()), None):
            raise UserError(f"data.path={path}: {missing} is not there, which {table} names")
        super().__init__(files, labels, seed, ["table", [name for _, name in files]])
