"""Text files that users wrote, in one way: names, captions, tables."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from classifier_lens.runner.files.atomic import open_regular_file
from classifier_lens.runner.types import UserError


def read_text(key: str, path: str | Path, expected: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with the mark that Windows programs set; line ends stay as they are.

    Raises UserError, which begins with the key and ends with what is wanted, for a file that cannot be read so.
    """
    try:
        with open_regular_file(Path(path).expanduser()) as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{key}: {error.strerror}; wanted is {expected}") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{key}: not UTF-8 text (line {line}), save it as UTF-8; wanted is {expected}") from error
    if "\0" in text:
        raise UserError(f"{key}: not UTF-8 text but binary data; wanted is {expected}")
    return text


def read_lines(key: str, path: str | Path, expected: str) -> list[str]:
    """The lines of a file that are not empty, without the space around them. Raises UserError as `read_text` does."""
    return [line.strip() for line in re.split(r"\r\n|\r|\n", read_text(key, path, expected)) if line.strip()]
