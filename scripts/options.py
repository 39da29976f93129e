"""`key=value` on a script's command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.types import UserError

T = TypeVar("T")


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
    """Those of names, in their order, that are given whole or by their beginnings, by commas, or `all`.

    Raises UserError for a word that fits none, and where there is no word.
    """
    words = [word.strip() for word in wanted.split(",") if word.strip()]
    for word in words or [wanted]:
        if not word or (word != "all" and not any(name.startswith(word) for name in names)):
            raise UserError(f"{key}={word}: allowed are {'; '.join(names)}, their beginnings, by commas, or all")
    return [name for name in names if any(word == "all" or name.startswith(word) for word in words)]
