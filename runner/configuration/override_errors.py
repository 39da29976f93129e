"""Hydra's errors about the overrides of a command in one line: the wrong word, a suggestion, how a value is quoted."""

from __future__ import annotations

import os
import re
import shlex
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from classifier_lens.runner.configuration.renamed_keys import renamed_key, renamed_option, renamed_unknown_key
from classifier_lens.runner.configuration.runner_settings import Settings
from classifier_lens.runner.configuration.type_descriptions import format_value, suggest
from classifier_lens.runner.paths import CONFIG_FOLDER
from classifier_lens.runner.results.reader import read_config
from classifier_lens.runner.types import UserError, first_line

FULL_ERROR_VARIABLE = "HYDRA_FULL_ERROR"  # if set, Hydra raises its errors instead of printing them and exiting
_inside: list[bool] = []  # not empty while this module has set the variable
HYDRA_COMMANDS = ("run", "multirun", "cfg", "info", "shell_completion")  # mutually exclusive options
KEY_PATTERN = re.compile(r"[+~]*[A-Za-z_][\w/.@:-]*")
CONSTANTS = ("null", "true", "false", "nan", "inf")  # of Hydra's overrides, in any case
HELP_HINT = "; `python run.py --hydra-help` lists the options; settings are overrides key=value"


def reorder_arguments(words: Sequence[str]) -> list[str]:
    """The words of a command with the overrides before Hydra's options, since Hydra would not recognize them behind an
    option. Raises UserError for an unknown, incomplete or conflicting option."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}{HELP_HINT}")

    parser.error = refuse  # type: ignore[method-assign]
    parsed = parser.parse_intermixed_args(list(words))
    if len(commands := [name for name in HYDRA_COMMANDS if getattr(parsed, name)]) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in commands)}: exclude each other; give one")
    if parsed.resolve and not (parsed.cfg or parsed.help):
        raise UserError("--resolve: needs --cfg, as in --cfg job --resolve")
    if parsed.experimental_rerun is not None:
        raise UserError("--experimental-rerun: reads a pickle, which may execute code; repeat the run's command")
    rest = Counter(parsed.overrides)
    options = [word for word in words if word != "--" and not (rest[word] and not rest.subtract([word]))]
    return [*parsed.overrides, *options]


@contextmanager
def hydra_errors_in_one_line(words: Sequence[str], task: Callable[..., Any] | None = None) -> Iterator[None]:
    """Within, errors of Hydra about the words of a command, or about their composition, become a UserError. Errors
    within `task`, the function that Hydra calls, and with HYDRA_FULL_ERROR=1 all errors, remain as they are."""
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
        raise UserError(" ".join(describe_error(error, words).split())) from error  # a value may contain line breaks
    finally:
        _inside.pop()
        os.environ.pop(FULL_ERROR_VARIABLE) if before is None else os.environ.update({FULL_ERROR_VARIABLE: before})


def describe_error(error: Exception, words: Sequence[str]) -> str:
    """One line about an error of Hydra."""
    if nameless := [word for word in words if word.lstrip("+~").startswith("=")]:
        return _invalid_word(nameless[0])
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(error, error.missing_cfg_file, words)
    for word in words:
        if (renamed := renamed_key(re.split("[=@]", word.lstrip("+~"))[0].replace("/", "."))) is not None:
            return renamed
    if isinstance(error, OverrideParseException):
        return _invalid_word(error.override)
    if isinstance(error, ConfigCompositionException):
        return _describe_composition_error(error, words)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {first_line(error)}"
    if isinstance(error, YAMLError):
        return str(error)  # of several lines, which name the file
    is_precise = isinstance(error, (HydraException, OmegaConfBaseException))
    return first_line(error) if is_precise else _find_wrong_word(error, words)


def _describe_composition_error(error: ConfigCompositionException, words: Sequence[str]) -> str:
    """One line about an error that Hydra raises for many reasons: the reason follows from its cause, or else from the
    overrides."""
    cause, overrides = error.__cause__, list(_parse(words))
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        return _unknown_key(str(cause.full_key or cause.key), str(cause.key), cause.parent_node)
    for override in overrides:
        if isinstance(cause, OmegaConfBaseException) and override.key_or_group == cause.full_key:
            return _invalid_word(f"{override.get_key_element()}={override.value()}", override.input_line)
    for override in (override for override in overrides if override.package is not None):
        names = _names_of(override.key_or_group)
        if (name := override.get_key_element()) not in names:
            return f"{name}: no such group; {suggest(name, names)}"
    for override in overrides:
        if str(error).startswith(f"Could not override '{override.key_or_group}'.") and (
            tasks := _tasks_with(override.key_or_group)
        ):
            return f"{override.input_line}: the task has no such part; {' or '.join(tasks)} has it"
    sweeps = [override for override in overrides if override.is_sweep_override()]
    if sweeps and not {"-m", "--multirun"} & set(words):
        return _invalid_word(str(sweeps[0].input_line))
    for override in overrides:
        if override.is_delete() and override.key_or_group.partition(".")[0] not in _top_level_keys():
            return _unknown_key(override.key_or_group, override.key_or_group.rpartition(".")[2], None)
    return first_line(error)


def _parse(words: Sequence[str]) -> Iterator[Override]:
    """The overrides among the words of a command that can be parsed."""
    for word in words:
        with suppress(OverrideParseException):
            if not word.startswith("-"):
                yield OverridesParser.create().parse_override(word)


def _names_of(group: str) -> list[str]:
    """A group with its packages, e.g. `data` and `data@training`, from the defaults of config.yaml and the tasks."""
    files = [CONFIG_FOLDER / "config.yaml", *(CONFIG_FOLDER / "task").glob("*.yaml")]
    entries = [entry for file in files for entry in read_config(file).get("defaults", ()) if isinstance(entry, Mapping)]
    keys = {key.removeprefix("override ").lstrip("/").replace("@_global_.", "@") for entry in entries for key in entry}
    return sorted({group, *(key for key in keys if key.startswith(f"{group}@") and key != f"{group}@{group}")})


def _tasks_with(group: str) -> list[str]:
    """The tasks, as overrides, that select an option of a group."""
    files = sorted((CONFIG_FOLDER / "task").glob("*.yaml"))
    defaults = {file.stem: read_config(file).get("defaults", ()) for file in files}
    key = f"/{group}@_global_.{group}"
    return [f"task={task}" for task, entries in defaults.items() if any(key in entry for entry in entries)]


def _top_level_keys() -> set[str]:
    return {path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir()} | set(Settings.__dataclass_fields__)


def _find_wrong_word(error: Exception, words: Sequence[str]) -> str:
    """An error that names no word, with the word that cannot be parsed, or that selects no option of its group."""
    for word in words:
        if "=" not in word or word.startswith("-"):  # an option of Hydra, or its value
            continue
        try:
            override = OverridesParser.create().parse_override(word)
        except OverrideParseException:
            continue
        except Exception as parse_error:  # an integer with thousands of digits, or lists of such a depth
            return f"{format_value(word)}: {first_line(parse_error)}"
        if (CONFIG_FOLDER / override.key_or_group).is_dir() and not isinstance(override.value(), (str, list)):
            return f"{word}: no such option; {suggest(format_value(override.value()), _options(override.key_or_group))}"
    return first_line(error)


def escape_interpolation(text: str) -> str:
    """The text with its `${` escaped, so that OmegaConf does not interpolate it."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def quote_override(word: str) -> str:
    """`key=value`, quoted for shell and Hydra so that the value is taken literally."""
    key, _, value = word.partition("=")
    word = f"{key}={quote_value(value)}"
    return shlex.quote(word) if re.search(r'["$`!\\]', escape_interpolation(value)) else f'"{word}"'


def list_override(key: str, names: Sequence[str]) -> str:
    """`key=[name,name]`, with quotes around the names that Hydra would not take literally."""
    return f"{key}=[{','.join(name if _is_plain(name) else quote_value(name) for name in names)}]"


def _is_plain(name: str) -> bool:
    """Whether Hydra takes a name in a list literally: words of letters that are none of its constants."""
    return bool(re.fullmatch(r"[A-Za-z]+([ -][A-Za-z]+)*", name)) and name.lower() not in CONSTANTS


def quote_value(text: str) -> str:
    """A text in quotes, which Hydra takes literally."""
    # Hydra takes a backslash literally except before a quote, including the closing one.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", escape_interpolation(text)))
    return f"'{escaped}'"


def _invalid_word(word: str, given: str | None = None) -> str:
    """A word that is not `key=value`, or whose value Hydra cannot parse; given: the word as given, if it differs."""
    key = word.partition("=")[0]
    if not key.strip() or ("=" not in word and not word.startswith("~")):
        return f"{word}: expected are overrides key=value, such as task=uvce"
    if not KEY_PATTERN.fullmatch(key):
        return _unknown_key(key, key, None)
    return f"{given or word}: this value has to be quoted, for example {quote_override(word)}"


def _unknown_option(error: MissingConfigException, missing: str, words: Sequence[str]) -> str:
    """The message about an unknown option of a group."""
    group, _, name = missing.rpartition("/")
    key = group
    for word in words:
        selected, _, value = word.lstrip("+").partition("=")
        if f"{selected.partition('@')[0]}/{value}" == missing:
            group, key, name = selected.partition("@")[0], selected, value
    if (renamed := renamed_option(f"{key}={name}")) is not None:
        return renamed
    options = sorted({*_options(group), *(error.options or ())}, key=_by_depth)
    return f"{key}={name}: no such option; {suggest(name, options)}" if group else f"{name}: no such configuration"


def _options(group: str) -> list[str]:
    """The options of a group, then those in its folders."""
    folder = CONFIG_FOLDER / group
    return sorted((str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")), key=_by_depth)


def _by_depth(option: str) -> tuple[bool, str]:
    return "/" in option, option


def _unknown_key(key: str, name: str, parent: object) -> str:
    """The message about an unknown key."""
    if (renamed := renamed_unknown_key(key)) is not None:
        return renamed
    names = [str(known) for known in parent if known != "hydra"] if isinstance(parent, DictConfig) else []
    if key == name:
        names = sorted({*names, *_top_level_keys()})
    if isinstance(parent, DictConfig) and parent.get("_target_") == "classifier_lens.data.no_dataset.NoDataset":
        return f"{key}: this task uses no data set; training.{name}=… sets the images on which units are ranked, if any"
    return f"{key}: no such key; {suggest(name, [known for known in names if not known.startswith('_')])}"
