"""Descriptions of errors in the user's code."""

from __future__ import annotations

import os
import site
import sysconfig
import traceback

from classifier_lens.runner.paths import CODE_FOLDERS
from classifier_lens.runner.types import first_line

# Prefixes of files that are not the user's code. An error there is located at the user's line that led to it.
_FOREIGN_PREFIXES = (
    "<", *(str(folder) + os.sep for folder in CODE_FOLDERS), sysconfig.get_path("stdlib") + os.sep,
    *(folder + os.sep for folder in (*site.getsitepackages(), site.getusersitepackages())),
)  # fmt: skip


def describe_error(error: BaseException) -> str:
    """The type and message of an error in one line, with the file and line of the user's code where it occurred."""
    return f"{type(error).__name__}: {first_line(error)}{error_location(error)}"


def error_location(error: BaseException) -> str:
    """The last file and line of the user's code in the traceback; empty if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    user_frames = [frame for frame in frames if not frame.filename.startswith(_FOREIGN_PREFIXES)]
    return f" ({user_frames[-1].filename}, line {user_frames[-1].lineno})" if user_frames else ""
