"""What Hydra says of a command's words, in one line: which word is wrong, what may be meant, how a value is quoted."""

from __future__ import annotations

import os
import re
import shlex
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from classifier_lens.runner.configuration.renamed_keys import renamed_key, renamed_option
from classifier_lens.runner.configuration.runner_settings import Settings
from classifier_lens.runner.configuration.type_descriptions import format_value, suggest
from classifier_lens.runner.paths import CONFIG_FOLDER
from classifier_lens.runner.types import UserError, first_line

FULL_ERROR_VARIABLE = "HYDRA_FULL_ERROR"  # with which Hydra hands its errors on, and does not print them and leave
_inside: list[bool] = []  # whether it is this module that has set it
HYDRA_COMMANDS = ("run", "multirun", "cfg", "info", "shell_completion")  # options of which one can be given
KEY_PATTERN = re.compile(r"[+~]*[A-Za-z_][\w/.@:-]*")
HELP_HINT = "; `python run.py --hydra-help` lists the options, and settings are words key=value"


def reorder_arguments(words: Sequence[str]) -> list[str]:
    """A command's words, those key=value before Hydra's options wherever they stood: behind an option Hydra takes them
    for none. Raises UserError for an option that is not known, not whole, or that another one excludes."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}{HELP_HINT}")

    parser.error = refuse  # type: ignore[method-assign]
    asked = parser.parse_intermixed_args(list(words))
    if len(commands := [name for name in HYDRA_COMMANDS if getattr(asked, name)]) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in commands)}: one of them can be given")
    if asked.resolve and not (asked.cfg or asked.help):
        raise UserError("--resolve: goes with --cfg, as --cfg job --resolve")
    if asked.experimental_rerun is not None:
        raise UserError("--experimental-rerun: reads a pickle, which may hold code; give the words of the run again")
    rest = Counter(asked.overrides)
    options = [word for word in words if word != "--" and not (rest[word] and not rest.subtract([word]))]
    return [*asked.overrides, *options]


@contextmanager
def hydra_errors_in_one_line(words: Sequence[str], task: Callable[..., Any] | None = None) -> Iterator[None]:
    """Within, whatever Hydra finds wrong of a command's words, or comes upon in composing them, raises UserError; what
    is raised within the function that Hydra calls, `task`, stays as it is. Who sets HYDRA_FULL_ERROR=1 gets Hydra's own
    error."""
    before = os.environ.get(FULL_ERROR_VARIABLE)
    if before == "1" and not _inside:
        yield
        return
    os.environ[FULL_ERROR_VARIABLE] = "1"
    _inside.append(True)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if task is not None and any(f.f_code is task.__code__ for f, _ in traceback.walk_tb(error.__traceback__)):
            raise
        raise UserError(" ".join(describe_error(error, words).split())) from error  # a value may hold ends of lines
    finally:
        _inside.pop()
        os.environ.pop(FULL_ERROR_VARIABLE) if before is None else os.environ.update({FULL_ERROR_VARIABLE: before})


def describe_error(error: Exception, words: Sequence[str]) -> str:
    """One line about an error of composing."""
    if nameless := [word for word in words if word.lstrip("+~").startswith("=")]:
        return _unread(nameless[0])
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_option(error, error.missing_cfg_file, words)
    for word in words:
        if (renamed := renamed_key(re.split("[=@]", word.lstrip("+~"))[0].replace("/", "."))) is not None:
            return renamed
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and "Could not override" in str(error):
        return _no_key(str(cause.full_key or cause.key), str(cause.key), cause.parent_node)
    if isinstance(error, OverrideParseException):
        return _unread(error.override)
    if merged := re.match(r"Error merging override (.*)$", str(error), re.DOTALL):  # a text with `${` that is no key
        override = OverridesParser.create().parse_override(merged[1])
        return _unread(f"{override.get_key_element()}={override.value()}", merged[1])
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'$", first_line(error)):
        return _unread(ambiguous[1])
    if meant := re.search(r"Could not override '(.+)'.\nDid you mean to override (?:one of )?(.*)\?", str(error)):
        return f"{meant[1]}: no such group; {suggest(meant[1], meant[2].split(', '))}"
    if deleted := re.match(r"Could not delete from config. '(.+)' does not exist", str(error)):
        return _no_key(deleted[1], deleted[1].rpartition(".")[2], None)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {first_line(error)}"
    if isinstance(error, YAMLError):
        return str(error)  # of several lines, which name the file
    return first_line(error) if isinstance(error, (HydraException, OmegaConfBaseException)) else _guilty(error, words)


def _guilty(error: Exception, words: Sequence[str]) -> str:
    """An error that names no word, with the one that cannot be read, or that chooses nothing of a group."""
    for word in words:
        if "=" not in word or word.startswith("-"):  # an option of Hydra's, or its value
            continue
        try:
            override = OverridesParser.create().parse_override(word)
        except OverrideParseException:
            continue
        except Exception as own:  # of an integer with thousands of digits, or of lists as deep
            return f"{format_value(word)}: {first_line(own)}"
        if (CONFIG_FOLDER / override.key_or_group).is_dir() and not isinstance(override.value(), (str, list)):
            return f"{word}: no such option; {suggest(format_value(override.value()), _options(override.key_or_group))}"
    return first_line(error)


def escape_interpolation(text: str) -> str:
    """A text of a configuration in which nothing stands for another key's."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def quote_override(word: str) -> str:
    """`key=value` as a shell has to be given it for the value to be taken as it stands."""
    key, _, value = word.partition("=")
    value = escape_interpolation(value)
    # Hydra takes a backslash as it stands but before a quote, the closing one too.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", value))
    word = f"{key}='{escaped}'"
    return shlex.quote(word) if re.search(r'["$`!\\]', value) else f'"{word}"'


def _unread(word: str, given: str | None = None) -> str:
    """A word that is no `key=value`, or whose value is written in no way that Hydra knows; given: as it was given."""
    key = word.partition("=")[0]
    if not key.strip() or ("=" not in word and not word.startswith("~")):
        return f"{word}: wanted are words key=value, such as task=uvce"
    if not KEY_PATTERN.fullmatch(key):
        return _no_key(key, key, None)
    return f"{given or word}: this value has to be quoted, for example {quote_override(word)}"


def _no_option(error: MissingConfigException, missing: str, words: Sequence[str]) -> str:
    """An option that a group does not have."""
    group, _, name = missing.rpartition("/")
    key = group
    for word in words:
        own, _, value = word.lstrip("+").partition("=")
        if f"{own.partition('@')[0]}/{value}" == missing:
            group, key, name = own.partition("@")[0], own, value
    if (renamed := renamed_option(f"{key}={name}")) is not None:
        return renamed
    options = sorted({*_options(group), *(error.options or ())}, key=_by_depth)
    return f"{key}={name}: no such option; {suggest(name, options)}" if group else f"{name}: no such configuration"


def _options(group: str) -> list[str]:
    """The options of a group, and after them those in its folders."""
    folder = CONFIG_FOLDER / group
    return sorted((str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")), key=_by_depth)


def _by_depth(option: str) -> tuple[bool, str]:
    return "/" in option, option


def _no_key(key: str, name: str, parent: object) -> str:
    """A key that there is not where it stands."""
    names = [str(known) for known in parent if known != "hydra"] if isinstance(parent, DictConfig) else []
    if key == name:
        groups = [path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()]
        names = sorted({*names, *groups, *Settings.__dataclass_fields__})
    if isinstance(parent, DictConfig) and parent.get("_target_") == "classifier_lens.data.no_dataset.NoDataset":
        return (
            f"{key}: this task looks at no data set; training.{name}=… is of the images that it ranks units on, if any"
        )
    return f"{key}: no such key; {suggest(name, [known for known in names if not known.startswith('_')])}"
