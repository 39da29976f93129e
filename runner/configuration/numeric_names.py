"""How the values of a configuration are written, in a command's words and in YAML files: what is read as a number there
may be a name to who reads it, and 3.10 and 3.1 are one number but two names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Of a value as Hydra reads it: texts in quotes, and what stands bare between its signs.
_BARE = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,\[\]{}:()'"]+""")
_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?")
_CANONICAL = re.compile(r"0|-?[1-9]\d*|-?(?:0|[1-9]\d*)\.(?:0|\d*[1-9])")

SourceTexts = Mapping[str, str]  # by key, `key[i]` within a list


def texts_of_overrides(words: Sequence[str]) -> dict[str, str]:
    """What stands in the words `key=value` of a command, where it is no text in quotes."""
    pairs = (word.lstrip("+").partition("=")[::2] for word in words)
    return {key: text for name, value in pairs for key, text in _leaves(name, _plain(value))}


def texts_of_files(folders: Sequence[Path], choices: Mapping[str, str]) -> dict[str, str]:
    """What stands in the files of the options that are chosen, by group, in folders of options. The first counts."""
    found: dict[str, str] = {}
    for choice, option in choices.items():
        group, _, package = choice.partition("@")
        path = next((file for folder in folders if (file := folder / group / f"{option}.yaml").is_file()), None)
        if path is not None:
            text = path.read_text(encoding="utf-8")
            whole = package == "_global_" or re.search(r"^#\s*@package\s+_global_", text, re.MULTILINE)
            found = dict(_leaves("" if whole else package or group.replace("/", "."), _plain(text))) | found
    return found


def restore_text(value: Any, key: str, written: SourceTexts) -> Any:
    """A value in which numbers, true and false stand as they are written, where that is known; null stays null."""
    if isinstance(value, list):
        return [restore_text(inner, f"{key}[{i}]", written) for i, inner in enumerate(value)]
    if isinstance(value, Mapping):
        return {name: restore_text(inner, f"{key}.{name}", written) for name, inner in value.items()}
    text = written.get(key)
    plain = text is None or value is None or isinstance(value, str) or not _means(text, value)
    return value if plain else text


def restore_texts(value: Any, before: Any, key: str, written: SourceTexts) -> Any:
    """A checked value in which every number that became a text stands as it is written."""
    if isinstance(value, str) and not isinstance(before, str):
        return str(restore_text(before, key, written))
    if isinstance(value, list) and isinstance(before, list):
        pairs = zip(value, before, strict=True)
        return [restore_texts(inner, old, f"{key}[{i}]", written) for i, (inner, old) in enumerate(pairs)]
    if isinstance(value, Mapping) and isinstance(before, Mapping):
        return {name: restore_texts(inner, before.get(name), f"{key}.{name}", written) for name, inner in value.items()}
    return value


def changes_spelling(word: str) -> bool:
    """Whether a sweep, when it hands a word `key=value` to a job, writes a number of it anew, 3.10 as 3.1."""
    parts = _BARE.findall(word.partition("=")[2])
    return any(_NUMBER.fullmatch(part.strip()) and not _CANONICAL.fullmatch(part.strip()) for part in parts)


def quote_numbers(word: str) -> str:
    """A word `key=value` whose numbers are texts."""
    key, _, value = word.partition("=")
    return f"{key}={_BARE.sub(lambda found: _quoted(found[0]), value)}"


def _quoted(part: str) -> str:
    bare = part.strip()
    return part.replace(bare, f"'{bare}'") if _NUMBER.fullmatch(bare) else part


def is_all_text(node: Any) -> bool:
    """Whether every value below is a text."""
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    return isinstance(node, str) or (bool(inner) and all(map(is_all_text, inner)))


def _means(text: str, value: object) -> bool:
    """Whether a text, read as a value of a configuration, is the value; another one may have come in its place."""
    if isinstance(value, float) and re.search(r"\d|nan|inf", text, re.IGNORECASE):
        return repr(_number(text)) == repr(value)
    try:
        read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (yaml.YAMLError, OmegaConfBaseException):
        return False
    return repr(read["value"]) == repr(value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _plain(text: str) -> Any:
    """YAML in which every value is the text that it is written with; nothing where it is none."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return None


def _leaves(key: str, node: Any) -> Iterator[tuple[str, str]]:
    """The texts below a key, with their own."""
    if isinstance(node, dict):
        for name, inner in node.items():
            yield from _leaves(f"{key}.{name}".lstrip("."), inner)
    elif isinstance(node, list):
        for i, inner in enumerate(node):
            yield from _leaves(f"{key}[{i}]", inner)
    elif isinstance(node, str):
        yield key, node
