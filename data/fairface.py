"""Image files with a table of attributes, the layout of FairFace."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from classifier_lens.data.image_folder import LabeledFiles, check_files_exist
from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import Names, Seed
from classifier_lens.runner.files.text import read_text
from classifier_lens.runner.types import UserError

FILE_COLUMN = "file"  # the column of paths, relative to the folder of the table
TableRows = Sequence[Mapping[str, str]]


def read_table(path: str | Path) -> TableRows:
    """The rows of a table, as mappings from column names to values.

    Raises UserError if the file, the column `file` or all rows are missing, or if a row has another number of values.
    """
    path = Path(path).expanduser()
    wanted = f"a CSV file with a column `{FILE_COLUMN}` and columns of attributes"
    text = read_text(f"data.table={path}", path, wanted)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        columns, rows = reader.fieldnames or (), list(reader)
    except csv.Error as error:
        raise UserError(f"data.table={path}: not CSV text; expected {wanted}") from error
    if FILE_COLUMN not in columns or not rows:
        raise UserError(
            f"data.table={path}: has {len(rows)} rows of {', '.join(columns) or 'nothing'}; expected {wanted}"
        )
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"data.table={path}: row {line} does not have {len(columns)} values, as the header has")
    return rows


def attributes(rows: TableRows) -> dict[str, tuple[str, ...]]:
    """The columns that can be labels or cues, with their sorted values."""
    return {column: tuple(sorted({row[column] for row in rows})) for column in rows[0] if column != FILE_COLUMN}


def select_labels(rows: TableRows, label: str, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The class names: `classes`, or all values of the column `label`. Raises UserError for unknown ones."""
    values_by_column = attributes(rows)
    values = values_by_column[check_choice("label", label, values_by_column)]
    return values if classes is None else tuple(check_choice("classes", name, values) for name in classes)


class FairFace(LabeledFiles):
    """The images of a table.

    Args:
        path: the folder.
        table: the CSV file in the folder.
        label_column: the column of the classes.
        classes: the classes whose images are used, None for all.

    Raises:
        UserError: the folder, the table, a column, a class or an image is missing.
    """

    def __init__(
        self, path: str | Path | None, table: str, label_column: str, classes: Names | None, seed: Seed
    ) -> None:  # fmt: skip
        if not path:
            raise UserError(f"data.path is missing: give the folder of {table}, e.g. data.path=fairface")
        root = Path(path).expanduser()
        rows = read_table(root / table)
        labels = select_labels(rows, label_column, classes)
        files = [(root / row[FILE_COLUMN], row[label_column]) for row in rows if row[label_column] in labels]
        check_files_exist(path, files, table)
        super().__init__(files, labels, seed, ["table", [name for _, name in files]])
