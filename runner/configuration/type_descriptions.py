"""Descriptions of the values that a type annotation allows, for error messages."""

from __future__ import annotations

import collections.abc
import difflib
import inspect
import types
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt, MinLen

from classifier_lens.runner.configuration.value_ranges import OneOf, Section

SEQUENCE_TYPES = (list, collections.abc.Sequence, collections.abc.Iterable)
MAPPING_TYPES = (dict, collections.abc.Mapping)
NONE_TYPE = type(None)
DEFAULT_RANGE = (Ge(-1_000_000_000), Le(1_000_000_000))  # of numbers without a range in their signature
MAX_VALUE_LENGTH = 60  # characters
MAX_LISTED_NAMES = 16  # in an error message; of more names only similar ones are listed


def describe_allowed(annotation: Any) -> str:
    """The allowed values of an annotation as text."""
    base, facts = split_annotated(annotation)
    options = next((fact.values for fact in facts if isinstance(fact, OneOf)), None)
    if options or get_origin(base) is Literal:
        return ", ".join(map(str, options or get_args(base)))
    if is_union(base):
        return " or ".join(dict.fromkeys(describe_allowed(part) for part in _lists_last(get_args(base))))
    if base in (int, float):
        return " ".join(["whole numbers" if base is int else "numbers", *_bounds(facts or DEFAULT_RANGE)])
    if get_origin(base) in (*SEQUENCE_TYPES, tuple):
        return _allowed_of_list(base, facts)
    if get_origin(base) in MAPPING_TYPES:
        key, value = get_args(base)
        names = f" of {describe_allowed(key)}" if split_annotated(key)[1] else ""
        return f"{{name: value}}{names} with {describe_allowed(value)}"
    if inspect.isclass(base) and issubclass(base, Section):
        return f"{{name: value}} of {', '.join(field.name for field in fields(base))}"
    if is_text(base):
        return "texts" if allows_empty(facts) else "texts that are not empty"
    return {bool: "true and false", NONE_TYPE: "null"}.get(base, "a part, {_target_: …}")


def accepts_text(annotation: Any) -> bool:
    """Whether an annotation allows texts."""
    return any(is_text(split_annotated(part)[0]) for part in union_members(annotation))


def suggest(name: str, names: Sequence[str]) -> str:
    """The allowed names instead of an unknown one; of many names only the similar ones."""
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.6)
    if len(names) <= MAX_LISTED_NAMES:
        meant = f"did you mean {close[0]}? " if close else ""
        return f"{meant}allowed are {', '.join(names) or 'none'}"
    return f"similar names are {', '.join(close)}" if close else f"allowed are {', '.join(names[:MAX_LISTED_NAMES])} …"


def format_value(value: Any) -> str:
    """A value as in an override, shortened to `MAX_VALUE_LENGTH`."""
    words = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = " ".join(words.split())
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}…"


def split_annotated(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without its metadata, and the metadata."""
    if get_origin(annotation) is Annotated:
        base, *facts = get_args(annotation)
        return base, tuple(facts)
    return annotation, ()


def is_union(base: Any) -> bool:
    return get_origin(base) in (Union, types.UnionType)


def is_text(base: Any) -> bool:
    return base in (str, Path)


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    base, _ = split_annotated(annotation)
    return get_args(base) if is_union(base) else (base,)


def allows_empty(facts: Sequence[Any]) -> bool:
    return any(isinstance(fact, MinLen) and fact.min_length == 0 for fact in facts)


def _lists_last(parts: Sequence[Any]) -> list[Any]:
    """The members of a union in the order of a description: lists and null last."""
    return sorted(parts, key=lambda part: (part is NONE_TYPE, get_origin(split_annotated(part)[0]) is not None))


def _bounds(facts: Sequence[Any]) -> Iterator[str]:
    """The bounds of a range as text."""
    words = {Ge: "from {}", Gt: "above {}", Le: "to {}", Lt: "to below {}"}
    if any(isinstance(fact, Gt) for fact in facts):
        words[Le] = "and up to {}"
    for kind, text in words.items():
        for fact in facts:
            if isinstance(fact, kind):
                yield text.format(getattr(fact, kind.__name__.lower()))


def _allowed_of_list(base: Any, facts: Sequence[Any]) -> str:
    """The allowed values of a list as text."""
    inner = describe_allowed(get_args(base)[0])
    lengths = [fact for fact in facts if isinstance(fact, Len) and fact.max_length is not None]
    count = len(get_args(base)) if get_origin(base) is tuple else lengths[0].max_length if lengths else None
    least = "at least one of " if any(isinstance(fact, MinLen) and fact.min_length for fact in facts) else ""
    return f"lists [a, b] of {f'{count} ' if count else least}{inner}"
