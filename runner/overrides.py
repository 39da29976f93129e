"""What Hydra says of a command's words, in one line: which word is wrong, what may be meant, how a value is quoted."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException, SearchPathException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from runner.schema import near
from runner.settings import Settings
from runner.types import UserError, first_line

CONF = Path(__file__).resolve().parent.parent / "conf"
FULL = "HYDRA_FULL_ERROR"  # with which Hydra hands its errors on, and does not print them and leave
_inside: list[bool] = []  # whether it is this module that has set it
FLAWS = (ConfigCompositionException, OverrideParseException, SearchPathException, OmegaConfBaseException)


def with_training(words: Sequence[str]) -> list[str]:
    """A command's words; where they choose the images but not those that units are ranked on (`training`), with words
    that choose the latter alike: the data set's training images where it has any, else the same images."""
    given = dict(word.partition("=")[::2] for word in words if "=" in word)
    several = bool({"-m", "--multirun"} & set(words))
    own = {key: value for key, value in given.items() if key.startswith("data.") and not (several and "," in value)}
    data, chosen = given.get("data"), "data@training" in given
    if data is None or chosen or data == "image" or not (CONF / "data" / f"{data}.yaml").is_file():
        kept, words_of_it = (["data.path"] if data is None and not chosen else []), []
    elif (CONF / "data" / f"{data}_train.yaml").is_file():
        kept, words_of_it = ["data.path"], [f"data@training={data}_train"]
    else:
        kept, words_of_it = list(own), [f"data@training={data}"]
    kept = [key for key in kept if not (key == "data.path" and os.path.isfile(os.path.expanduser(own.get(key, ""))))]
    alike = {f"training.{key.removeprefix('data.')}": own[key] for key in kept if key in own}
    added = [*words_of_it, *(f"{key}={value}" for key, value in alike.items() if key not in given)]
    # Beside the other words: behind an option such as --cfg they would be none.
    place = 1 + max((i for i, word in enumerate(words) if "=" in word and not word.startswith("-")), default=-1)
    return [*words[:place], *added, *words[place:]]


@contextmanager
def in_one_line(words: Sequence[str]) -> Iterator[None]:
    """Within, what Hydra finds wrong of a command's words raises UserError. Who sets HYDRA_FULL_ERROR=1 gets Hydra's
    own error."""
    before = os.environ.get(FULL)
    if before == "1" and not _inside:
        yield
        return
    os.environ[FULL] = "1"
    _inside.append(True)
    try:
        yield
    except FLAWS as error:
        raise UserError(" ".join(told(error, words).split())) from error  # a value may hold ends of lines
    finally:
        _inside.pop()
        os.environ.pop(FULL) if before is None else os.environ.update({FULL: before})


def told(error: Exception, words: Sequence[str]) -> str:
    """One line about an error of composing."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_option(error, error.missing_cfg_file, words)
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and "Could not override" in str(error):
        return _no_key(str(cause.full_key or cause.key), str(cause.key), cause.parent_node)
    if isinstance(error, OverrideParseException):
        return _unread(error.override)
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'$", first_line(error)):
        return _unread(ambiguous[1])
    if meant := re.search(r"Could not override '(.+)'.\nDid you mean to override (?:one of )?(.*)\?", str(error)):
        return f"{meant[1]}: no such group; {near(meant[1], meant[2].split(', '))}"
    if deleted := re.match(r"Could not delete from config. '(.+)' does not exist", str(error)):
        return _no_key(deleted[1], deleted[1].rpartition(".")[2], None)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {first_line(error)}"
    return first_line(error)


def quoted(word: str) -> str:
    """`key=value` as a shell has to be given it for the value to be taken as it stands."""
    key, _, value = word.partition("=")
    # Hydra takes a backslash as it stands but before a quote, the closing one too.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", value))
    word = f"{key}='{escaped}'"
    return shlex.quote(word) if re.search(r'["$`!\\]', value) else f'"{word}"'


def _unread(word: str) -> str:
    """A word that is no `key=value`, or whose value is written in no way that Hydra knows."""
    if "=" not in word and not word.startswith("~"):
        return f"{word}: wanted are words key=value, such as task=uvce"
    return f"{word}: this value has to be quoted, for example {quoted(word)}"


def _no_option(error: MissingConfigException, missing: str, words: Sequence[str]) -> str:
    """An option that a group does not have."""
    group, _, name = missing.rpartition("/")
    key = group
    for word in words:
        own, _, value = word.lstrip("+").partition("=")
        if f"{own.partition('@')[0]}/{value}" == missing:
            group, key, name = own.partition("@")[0], own, value
    found = {str(path.relative_to(CONF / group).with_suffix("")) for path in (CONF / group).rglob("*.yaml")}
    options = sorted(found | set(error.options or ()))
    return f"{key}={name}: no such option; {near(name, options)}" if group else f"{name}: no such configuration"


def _no_key(key: str, name: str, parent: object) -> str:
    """A key that there is not where it stands."""
    names = [str(known) for known in parent if known != "hydra"] if isinstance(parent, DictConfig) else []
    if key == name:
        groups = [path.name for path in CONF.iterdir() if path.is_dir()]
        names = sorted({*names, *groups, *Settings.__dataclass_fields__})
    return f"{key}: no such key; {near(name, [known for known in names if not known.startswith('_')])}"
