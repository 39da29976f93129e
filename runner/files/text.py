"""Text files of users, such as names, captions and tables."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from classifier_lens.runner.files.atomic import open_regular_file
from classifier_lens.runner.types import UserError


def read_text(key: str, path: str | Path, expected: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark; line ends remain as they are.

    Raises UserError, from the key to the expected content, for a file that cannot be read.
    """
    try:
        with open_regular_file(Path(path).expanduser()) as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"{key}: {error.strerror}; expected {expected}") from error
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{key}: not UTF-8 text (line {line}), save it as UTF-8; expected {expected}") from error
    if "\0" in text:
        raise UserError(f"{key}: not UTF-8 text but binary data; expected {expected}")
    return text


def read_lines(key: str, path: str | Path, expected: str) -> list[str]:
    """The stripped lines of a file without the empty ones. Raises UserError as `read_text` does."""
    return [line.strip() for line in re.split(r"\r\n|\r|\n", read_text(key, path, expected)) if line.strip()]
