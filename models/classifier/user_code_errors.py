"""What is said of an error in code that is not ours."""

from __future__ import annotations

import os
import site
import sysconfig
import traceback

from classifier_lens.runner.paths import CODE_FOLDERS
from classifier_lens.runner.types import first_line

# Where code lies that is not the user's: an error in it is told at the user's line that led there.
_OTHERS = (
    "<", *(str(folder) + os.sep for folder in CODE_FOLDERS), sysconfig.get_path("stdlib") + os.sep,
    *(folder + os.sep for folder in (*site.getsitepackages(), site.getusersitepackages())),
)  # fmt: skip


def describe_error(error: BaseException) -> str:
    """An error of the user's code in one line, with its kind, and the file and line of that code where it arose."""
    return f"{type(error).__name__}: {first_line(error)}{error_location(error)}"


def error_location(error: BaseException) -> str:
    """The file and line of the user's code where an error arose, empty where it is not the user's."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    own = [f for f in frames if not f.filename.startswith(_OTHERS)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
