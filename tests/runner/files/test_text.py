"""Text files as programs of every kind write them: read right, or one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from classifier_lens.models.captioner.captioner import FileCaptioner
from classifier_lens.models.captioner.clip_ranking import read_list
from classifier_lens.models.classifier.loaders.class_names import read_labels
from classifier_lens.runner.files.text import read_lines, read_text
from classifier_lens.runner.types import UserError

NAMES = ("7", "crêpe", "potter's wheel", "猫")
TEXT = "\r\n".join(["", NAMES[0], "", f" {NAMES[1]} ", *NAMES[2:], ""])


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(), b"\xef\xbb\xbf" + TEXT.encode(), TEXT.encode("utf-16"), b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.replace("\r\n", "\n").encode(), TEXT.replace("\r\n", "\r").encode(),
    ],
    ids=["crlf", "mark", "utf-16", "utf-16-be", "lf", "cr"],
)  # fmt: skip
def test_names_are_read_whatever_program_wrote_them(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(data)
    path = str(tmp_path / "names.txt")
    assert read_labels(path) == NAMES and read_list("captioner.objects", path) == list(NAMES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a\ncr\u00eape".encode("latin-1"), "not UTF-8 text (line 2), save it as UTF-8"),
        ("a".encode("utf-16-le"), "not UTF-8 text but binary data"), (b"\xff\xfea", "not UTF-8 text (line 1)"),
        (None, "No such file or directory"),
    ],
)  # fmt: skip
def test_others_end_in_one_line(data: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "names.csv"
    if data is not None:
        path.write_bytes(data)
    for read in (
        lambda: read_labels(str(path)), lambda: FileCaptioner(str(path)), lambda: read_text("key", path, "a table"),
        lambda: read_lines("key", path, "names"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            read()
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="Is a directory; expected names"):
        read_lines("key", tmp_path, "names")
