"""The command `python run.py`: the help without slow imports, everything else with them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from classifier_lens.runner.command_help import HELP_OPTIONS, help_text


def main(words: Sequence[str]) -> int:
    """`python run.py <words>`; returns the exit code, of a sweep that of a failed run."""
    if HELP_OPTIONS & set(words):
        print(help_text(shutil.get_terminal_size((120, 0)).columns))
        return 0
    from classifier_lens.runner import command, report_command

    return report_command.main(words) if report_command.is_report(words) else command.main(words)
