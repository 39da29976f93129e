"""`key=value` on a script's command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.types import UserError

T = TypeVar("T")
SHOWN = 16  # names that an error lists; of more, the nearest


def parsed(kind: type[T], arguments: Sequence[str]) -> T:
    """An instance of a dataclass of options. Raises UserError for an unknown key or a value that is not allowed."""
    schema = OmegaConf.structured(kind)
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator or key not in schema:
            raise UserError(f"{argument}: allowed are {', '.join(f'{k}=' for k in schema)}")
        try:
            schema[key] = None if value == "null" else value
        except OmegaConfBaseException as error:
            raise UserError(f"{argument}: {str(error).splitlines()[0]}") from error
    chosen = OmegaConf.to_object(schema)
    assert isinstance(chosen, kind)
    return chosen


def selected(key: str, wanted: str, names: Sequence[str]) -> list[str]:
    """Those of names, in their order, that are given whole, else by their beginnings, by commas, or `all`.

    Raises UserError for a word that fits none, and where there is no word.
    """
    found: set[str] = set()
    for word in [word.strip() for word in wanted.split(",") if word.strip()] or [""]:
        hits = {word} & set(names) or {name for name in names if word and (word == "all" or name.startswith(word))}
        if not hits:
            near = difflib.get_close_matches(word, names, n=5, cutoff=0.3)
            shown = names if len(names) <= SHOWN else near or names[:5]
            listed = "; ".join([*shown, *(["…"] if len(shown) < len(names) else [])])
            raise UserError(f"{key}={word}: allowed are {listed}, their beginnings, by commas, or all")
        found |= hits
    return [name for name in names if name in found]
