"""Options `key=value` of a command line, parsed into a dataclass whose annotations define the allowed values."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from classifier_lens.runner.configuration.schema import check_settings
from classifier_lens.runner.configuration.type_descriptions import accepts_text
from classifier_lens.runner.types import UserError, first_line

T = TypeVar("T")


def parse_options(options_type: type[T], arguments: Sequence[str]) -> T:
    """An instance of a dataclass of options. Raises UserError, in one line, for a word that is not `key=value`, an
    unknown key or a value that is not allowed."""
    paths, options = parse_paths_and_options(options_type, arguments)
    if paths:
        raise UserError(f"{paths[0]}: allowed are {', '.join(f'{name}=' for name in _hints(options_type))}")
    return options


def split_options(options_type: type[T], arguments: Sequence[str]) -> tuple[T, list[str]]:
    """An instance of a dataclass of options, and the arguments with other keys. Raises UserError as `parse_options`
    does."""
    names = set(_hints(options_type))
    own = [argument for argument in arguments if argument.partition("=")[1] and argument.partition("=")[0] in names]
    return parse_options(options_type, own), [argument for argument in arguments if argument not in own]


def parse_paths_and_options(options_type: type[T], arguments: Sequence[str]) -> tuple[list[str], T]:
    """The paths among the arguments, and an instance of a dataclass of options. Raises UserError as `parse_options`
    does for keys and values."""
    words = {argument: argument.partition("=") for argument in arguments}
    paths = [argument for argument, (key, sign, _) in words.items() if not (sign and key.isidentifier())]
    values = {
        key: _value(key, text, _hints(options_type)) for word, (key, _, text) in words.items() if word not in paths
    }
    return paths, options_type(**check_settings(options_type, values))


def merge_overrides(base: DictConfig, words: Sequence[str]) -> DictConfig:
    """A configuration merged with overrides `key=value`, where the key may be nested (`a.b`). Raises UserError for any
    other word; the values are checked by `check_settings`."""
    for word in words:
        if not word.partition("=")[1]:
            raise UserError(f"{word}: expected are overrides key=value")
        try:
            base = typing.cast(DictConfig, OmegaConf.merge(base, OmegaConf.from_dotlist([word])))
        except (YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
            raise UserError(f"{word}: cannot be read ({first_line(error)})") from error
    return base


def _value(key: str, text: str, hints: Mapping[str, Any]) -> Any:
    """The value of an override: the text itself if its option is a text, otherwise its meaning in YAML."""
    if text == "null" or not text or accepts_text(hints.get(key, str)):
        return None if text == "null" else text
    values: Any = OmegaConf.to_container(merge_overrides(OmegaConf.create({}), [f"{key}={text}"]))
    return values[key]


def _hints(options_type: type) -> dict[str, Any]:
    return typing.get_type_hints(options_type, include_extras=True)
