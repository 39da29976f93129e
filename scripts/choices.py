"""Choices by name on the command lines of scripts, and one line for what is wrong."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence

from classifier_lens.runner.types import UserError

BAD_INPUT = 2  # the exit code
MAX_LISTED = 16  # names that an error lists; of more, the nearest


def select_names(key: str, selection: str, names: Sequence[str]) -> list[str]:
    """Those of names, in their order, that are given whole, else by their beginnings, by commas, or `all`.

    Raises UserError for a word that fits none, and where there is no word.
    """
    found: set[str] = set()
    for word in [word.strip() for word in selection.split(",") if word.strip()] or [""]:
        hits = {word} & set(names) or {name for name in names if word and (word == "all" or name.startswith(word))}
        if not hits:
            near = difflib.get_close_matches(word, names, n=5, cutoff=0.3)
            shown = names if len(names) <= MAX_LISTED else near or names[:5]
            listed = "; ".join([*shown, *(["…"] if len(shown) < len(names) else [])])
            raise UserError(f"{key}={word}: allowed are {listed}, their beginnings, by commas, or all")
        found |= hits
    return [name for name in names if name in found]


def run_main(main: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    """A script's exit code: 0, or 2 and one line for what the user can put right."""
    try:
        main(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    return 0
