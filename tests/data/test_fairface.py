"""Images with a table of attributes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from classifier_lens.data.fairface import FairFace, attributes, read_table, select_labels
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.types import UserError

HEAD = "file,age,gender,race,service_test"
ROWS = (
    "val/1.jpg,20-29,Male,East Asian,True", "val/2.jpg,3-9,Female,Black,False",
    "val/3.jpg,20-29,Female,White,False", "val/4.jpg,more than 70,Male,Black,True",
)  # fmt: skip


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Four images of different shades and their table."""
    (tmp_path / "val").mkdir()
    for i, row in enumerate(ROWS, start=1):
        Image.new("RGB", (20, 16), (40 * i,) * 3).save(tmp_path / row.split(",")[0], quality=100)
    (tmp_path / "table.csv").write_text("\n".join([HEAD, *ROWS]) + "\n")
    return tmp_path


def test_a_published_table_is_read(faces: Path) -> None:
    rows = read_table(faces / "table.csv")
    assert [row["file"] for row in rows] == [f"val/{i}.jpg" for i in (1, 2, 3, 4)]
    assert attributes(rows)["race"] == ("Black", "East Asian", "White") and "file" not in attributes(rows)
    assert select_labels(rows, "gender", None) == ("Female", "Male")


def test_each_image_has_the_label_of_its_row(faces: Path) -> None:
    data: Dataset = FairFace(faces, "table.csv", "age", None, 0)
    assert data.labels == ("20-29", "3-9", "more than 70") and len(data) == 4 and data.nearest_class("3-9") is None
    shades = {round(float(data[i].image.mean()) * 255 / 40): data[i].label for i in range(4)}
    assert shades == {1: "20-29", 2: "3-9", 3: "20-29", 4: "more than 70"}
    assert all(data[i].label == "20-29" for i in data.indices("20-29")) and len(data.indices("20-29")) == 2
    assert data[0].image.shape == (3, 16, 20) and len({data[i].name for i in range(4)}) == 4


def test_selected_classes_keep_their_order(faces: Path) -> None:
    data = FairFace(faces, "table.csv", "age", ["more than 70", "20-29"], 0)
    assert data.labels == ("more than 70", "20-29") and len(data) == 3 and data.indices("3-9") == []


def test_the_digest_depends_on_column_order_and_files(faces: Path) -> None:
    build = lambda label="age", seed=0: FairFace(faces, "table.csv", label, None, seed).digest  # noqa: E731
    digests = {build(), build("race"), build(seed=1)}
    assert build() in digests and len(digests) == 3
    Image.new("RGB", (30, 30), "red").save(faces / "val" / "1.jpg")
    assert build() not in digests


@pytest.mark.parametrize(
    ("table", "label", "classes", "message"),
    [
        (None, "age", None, r"data.table=.*: No such file"),
        ("", "age", None, r"has 0 rows of nothing; expected a CSV file with a column `file`"),
        (HEAD, "age", None, r"has 0 rows of file, age"),
        ("name,age\nx,3", "age", None, r"has 1 rows of name, age; expected a CSV file with a column `file`"),
        ("file,age\nval/1.jpg", "age", None, r"row 2 does not have 2 values"),
        ("file,age\nval/1.jpg,3-9,Male", "age", None, r"row 2 does not have 2 values"),
        ("file,age\nval/9.jpg,3-9", "age", None, r"val/9.jpg does not exist, but is listed in table.csv"),
        ("file,age\nval/1.jpg,3-9", "file", None, r"label=file: allowed are age$"),
        ("file,age\nval/1.jpg,3-9", "age", ["20-29"], r"classes=20-29: allowed are 3-9$"),
    ],
)
def test_missing_parts_are_named_in_one_line(
    faces: Path, table: str | None, label: str, classes: list[str] | None, message: str
) -> None:
    if table is None:
        (faces / "table.csv").unlink()
    else:
        (faces / "table.csv").write_text(table)
    with pytest.raises(UserError, match=message) as refused:
        FairFace(faces, "table.csv", label, classes, 0)
    assert "\n" not in str(refused.value)
