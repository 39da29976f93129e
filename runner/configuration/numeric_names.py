"""The source texts of configuration values, in overrides and in YAML files: YAML reads a name like 3.10 as a number and
loses its spelling, although 3.10 and 3.1 are different names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Parts of a value in Hydra's grammar: quoted texts, and unquoted ones between the delimiters.
_BARE = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,\[\]{}:()'"]+""")
_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?")
_CANONICAL = re.compile(r"0|-?[1-9]\d*|-?(?:0|[1-9]\d*)\.(?:0|\d*[1-9])")

SourceTexts = Mapping[str, str]  # unquoted source text by key, `key[i]` within a list


def texts_of_overrides(words: Sequence[str]) -> dict[str, str]:
    """The source texts of the overrides `key=value` of a command."""
    pairs = (word.lstrip("+").partition("=")[::2] for word in words)
    return {key: text for name, value in pairs for key, text in _leaves(name, _plain(value))}


def texts_of_files(folders: Sequence[Path], choices: Mapping[str, str]) -> dict[str, str]:
    """The source texts in the files of the selected options. folders: in search order; choices: option by group."""
    texts: dict[str, str] = {}
    for choice, option in choices.items():
        group, _, package = choice.partition("@")
        path = next((file for folder in folders if (file := folder / group / f"{option}.yaml").is_file()), None)
        if path is not None:
            text = path.read_text(encoding="utf-8")
            is_global = package == "_global_" or re.search(r"^#\s*@package\s+_global_", text, re.MULTILINE)
            prefix = "" if is_global else package or group.replace("/", ".")
            texts = dict(_leaves(prefix, _plain(text))) | texts
    return texts


def restore_text(value: Any, key: str, source_texts: SourceTexts) -> Any:
    """A value in which numbers and booleans are replaced by their source texts, if these are known; null remains."""
    if isinstance(value, list):
        return [restore_text(inner, f"{key}[{i}]", source_texts) for i, inner in enumerate(value)]
    if isinstance(value, Mapping):
        return {name: restore_text(inner, f"{key}.{name}", source_texts) for name, inner in value.items()}
    text = source_texts.get(key)
    plain = text is None or value is None or isinstance(value, str) or not _means(text, value)
    return value if plain else text


def restore_texts(value: Any, before: Any, key: str, source_texts: SourceTexts) -> Any:
    """A checked value in which every number that became a text has its source text."""
    if isinstance(value, str) and not isinstance(before, str):
        return str(restore_text(before, key, source_texts))
    if isinstance(value, list) and isinstance(before, list):
        pairs = zip(value, before, strict=True)
        return [restore_texts(inner, old, f"{key}[{i}]", source_texts) for i, (inner, old) in enumerate(pairs)]
    if isinstance(value, Mapping) and isinstance(before, Mapping):
        return {
            name: restore_texts(inner, before.get(name), f"{key}.{name}", source_texts) for name, inner in value.items()
        }
    return value


def changes_spelling(word: str) -> bool:
    """Whether Hydra's sweeper would change the spelling of a number in an override `key=value`, e.g. 3.10 to 3.1."""
    parts = _BARE.findall(word.partition("=")[2])
    return any(_NUMBER.fullmatch(part.strip()) and not _CANONICAL.fullmatch(part.strip()) for part in parts)


def quote_numbers(word: str) -> str:
    """An override `key=value` with its numbers quoted."""
    key, _, value = word.partition("=")
    return f"{key}={_BARE.sub(lambda match: _quoted(match[0]), value)}"


def _quoted(part: str) -> str:
    bare = part.strip()
    return part.replace(bare, f"'{bare}'") if _NUMBER.fullmatch(bare) else part


def is_all_text(node: Any) -> bool:
    """Whether every value of the node is a text."""
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    return isinstance(node, str) or (bool(inner) and all(map(is_all_text, inner)))


def _means(text: str, value: object) -> bool:
    """Whether a source text has this value in YAML; another override may have replaced the value."""
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
    """The parsed YAML with every value as its source text; None for invalid YAML."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return None


def _leaves(key: str, node: Any) -> Iterator[tuple[str, str]]:
    """The texts of a node with their keys."""
    if isinstance(node, dict):
        for name, inner in node.items():
            yield from _leaves(f"{key}.{name}".lstrip("."), inner)
    elif isinstance(node, list):
        for i, inner in enumerate(node):
            yield from _leaves(f"{key}[{i}]", inner)
    elif isinstance(node, str):
        yield key, node
