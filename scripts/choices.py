"""Selection of names on the command lines of scripts, and errors in one line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence

from classifier_lens.runner.types import UserError

BAD_INPUT = 2  # the exit code
MAX_LISTED = 16  # names that an error lists; of more names the closest ones


def select_names(key: str, selection: str, names: Sequence[str]) -> list[str]:
    """The selected names, in the order of `names`. selection: names or prefixes of names, separated by commas, or
    `all`.

    Raises UserError for a word that matches no name, and for an empty selection.
    """
    selected: set[str] = set()
    for word in [word.strip() for word in selection.split(",") if word.strip()] or [""]:
        hits = {word} & set(names) or {name for name in names if word and (word == "all" or name.startswith(word))}
        if not hits:
            close_names = difflib.get_close_matches(word, names, n=5, cutoff=0.3)
            listed_names = names if len(names) <= MAX_LISTED else close_names or names[:5]
            listing = "; ".join([*listed_names, *(["…"] if len(listed_names) < len(names) else [])])
            raise UserError(
                f"{key}={word}: allowed are {listing}, prefixes of them, several separated by commas, or all"
            )
        selected |= hits
    return [name for name in names if name in selected]


def run_main(main: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> int:
    """Run a script's main function; returns the exit code: 0, or 2 with one line on stderr for a UserError."""
    try:
        main(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    return 0
