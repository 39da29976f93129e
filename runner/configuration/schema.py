"""Checks of the types and ranges of configuration values.

The arguments of a node's `_target_` are checked against its signature, the settings of the runner against `Settings`;
ranges are those of `runner.configuration.value_ranges`. Of a signature without annotations, as in other packages, only
the names are checked.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache, reduce
from operator import or_
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Len
from hydra.utils import get_object
from pydantic import AfterValidator, AllowInfNan, BeforeValidator, Field, Strict, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from classifier_lens.runner.configuration.numeric_names import SourceTexts, restore_text, restore_texts
from classifier_lens.runner.configuration.renamed_keys import KEYS, renamed_unknown_key, renamed_value
from classifier_lens.runner.configuration.type_descriptions import (
    DEFAULT_RANGE,
    MAPPING_TYPES,
    NONE_TYPE,
    SEQUENCE_TYPES,
    accepts_text,
    allows_empty,
    describe_allowed,
    format_value,
    is_text,
    is_union,
    split_annotated,
    suggest,
    union_members,
)
from classifier_lens.runner.configuration.value_ranges import Keys, OneOf, Section
from classifier_lens.runner.paths import PACKAGE
from classifier_lens.runner.types import UserError, first_line

# Keys of a node that are not arguments of its target.
HYDRA_KEYS = frozenset({"_target_", "_partial_", "_convert_", "_recursive_"})
# Loaders that forward their other arguments, and the receivers.
FORWARDED = {
    "classifier_lens.models.generator.latent_diffusion.load": (
        "classifier_lens.models.generator.latent_diffusion.LatentDiffusionSettings"
    )
}


@dataclass(frozen=True)
class Violation:
    """A wrong key or value with its error message."""

    key: str
    message: str


class Violations(list[Violation]):
    """The violations in a configuration, in the order of their detection, the source texts of its values, and the new
    names of renamed keys."""

    def __init__(self, source_texts: SourceTexts, renamed: Mapping[str, str]) -> None:
        super().__init__()
        self.source_texts, self.renamed = source_texts, renamed

    def raise_first(self) -> None:
        """Raise UserError of the first violation with the shortest key: values that refer to it are wrong, too."""
        if self:
            raise UserError(min(self, key=lambda wrong: wrong.key.count(".")).message)


def check_settings(
    settings_type: type, values: Mapping[str, Any], prefix: str = "", source_texts: SourceTexts = MappingProxyType({}),
    renamed: Mapping[str, str] = KEYS,
) -> dict[str, Any]:  # fmt: skip
    """The checked settings of a dataclass, with every nested node. A number in place of a text becomes its source text,
    if that is known. renamed: new names of old keys, for errors.

    Raises UserError, in one line with the key, the value and the allowed values, for an unknown or a missing key and
    for a value of the wrong type or out of its range.
    """
    violations = Violations(source_texts, renamed)
    checked = _fields(_Signature.of(settings_type, partial=False), values, prefix, violations)
    violations.raise_first()
    return checked


# --- nodes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Signature:
    """Named arguments: their annotations, the required ones, and whether others are accepted (`**kwargs`)."""

    annotations: Mapping[str, Any]
    required: frozenset[str]
    open: bool

    @staticmethod
    def of(target: Callable[..., Any], partial: bool) -> _Signature:
        """Of a function or class. A partial call requires only the arguments with a range; callers set the others."""
        parameters = inspect.signature(target).parameters
        hints = _hints(target)
        names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        annotations = {name: hints.get(name, Any) for name in names}
        without_default = [n for n in names if parameters[n].default is inspect.Parameter.empty]
        required = [n for n in without_default if not partial or split_annotated(annotations[n])[1]]
        return _Signature(annotations, frozenset(required), any(p.kind is p.VAR_KEYWORD for p in parameters.values()))

    @staticmethod
    def of_node(path: str, partial: bool) -> _Signature:
        """Of the target of a node. Raises UserError, without a key, if it does not exist."""
        loader = _Signature.of(_locate(path), partial)
        if path not in FORWARDED:
            return loader
        receiver = _Signature.of(_locate(FORWARDED[path]), partial)
        annotations = {**receiver.annotations, **loader.annotations}
        return _Signature(annotations, loader.required | receiver.required, False)


def _locate(path: str) -> Callable[..., Any]:
    try:
        target = get_object(path)
    except Exception as error:  # importing a user's module may raise anything
        raise UserError(f"cannot be found ({first_line(error)})") from error
    if not callable(target):
        raise UserError("cannot be called; expected a function or a class")
    return typing.cast(Callable[..., Any], target)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations by name; none if those of another package use names that only a type checker imports."""
    source: Any = target if is_dataclass(target) or not inspect.isclass(target) else target.__init__
    try:
        return typing.get_type_hints(source, include_extras=True)
    except (NameError, TypeError):
        assert source.__module__.split(".")[0] != PACKAGE, source
        return {}


_of_node = cache(_Signature.of_node)


def _node(node: Mapping[str, Any], key: str, violations: Violations) -> dict[str, Any]:
    """A node with checked values."""
    try:
        signature = _of_node(str(node["_target_"]), bool(node.get("_partial_", False)))
    except UserError as error:
        violations.append(Violation(f"{key}._target_", f"{key}._target_={format_value(node['_target_'])}: {error}"))
        return dict(node)
    of_hydra = {name: value for name, value in node.items() if name in HYDRA_KEYS}
    arguments = {name: value for name, value in node.items() if name not in HYDRA_KEYS}
    return {**of_hydra, **_fields(signature, arguments, f"{key}.", violations)}


def _fields(signature: _Signature, values: Mapping[str, Any], prefix: str, violations: Violations) -> dict[str, Any]:
    names = list(signature.annotations)
    for name in signature.required - set(values):
        message = f"{prefix}{name}: is missing; allowed are {describe_allowed(signature.annotations[name])}"
        violations.append(Violation(f"{prefix}{name}", message))
    checked = {}
    for name, value in values.items():
        if name not in signature.annotations and not signature.open:
            unknown = f"{prefix}{name}={format_value(value)}: unknown key; {suggest(str(name), names)}"
            violations.append(
                Violation(f"{prefix}{name}", renamed_unknown_key(f"{prefix}{name}", violations.renamed) or unknown)
            )
        else:
            checked[name] = _value(value, signature.annotations.get(name, Any), f"{prefix}{name}", violations)
    return checked


def _value(value: Any, annotation: Any, key: str, violations: Violations) -> Any:
    """A value checked against its annotation, and every nested node against its signature."""
    parts = union_members(annotation)
    if value == {} and NONE_TYPE in parts and not any(get_origin(part) in MAPPING_TYPES for part in parts):
        return None  # an option `none` is empty
    if isinstance(value, Mapping) and (signature := _signature_of(annotation)):
        return _fields(signature, value, f"{key}.", violations)
    try:
        checked = restore_texts(_adapter(annotation).validate_python(value), value, key, violations.source_texts)
    except ValidationError as error:
        checked = _of_texts(value, annotation, key, violations, error)
    return _below(checked, key, violations)


def _of_texts(value: Any, annotation: Any, key: str, violations: Violations, error: ValidationError) -> Any:
    """A value of the wrong type, replaced by its source text if that fits: a class name may be true, or 3.10."""
    try:
        return _adapter(annotation).validate_python(restore_text(value, key, violations.source_texts))
    except ValidationError:
        violations.append(_wrong(value, annotation, key, error))
        return value


def _signature_of(annotation: Any) -> _Signature | None:
    """The signature of a mapping with known keys, None for any other annotation."""
    base, facts = split_annotated(annotation)
    for fact in facts:
        if isinstance(fact, Keys):
            return _Signature(dict.fromkeys(fact.names, get_args(base)[1]), frozenset(fact.names), False)
    sections = [part for part in union_members(annotation) if inspect.isclass(part) and issubclass(part, Section)]
    return _Signature.of(sections[0], partial=False) if sections else None


def _below(value: Any, key: str, violations: Violations) -> Any:
    """A value with its nested nodes checked."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _node(value, key, violations)
        return {name: _below(inner, f"{key}.{name}", violations) for name, inner in value.items()}
    return (
        [_below(inner, f"{key}[{i}]", violations) for i, inner in enumerate(value)]
        if isinstance(value, list)
        else value
    )


# --- values ------------------------------------------------------------------------------------------------------


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_strict(annotation))


def _strict(annotation: Any) -> Any:
    """The annotation for pydantic's check of YAML values, without conversions except of whole numbers to numbers and
    of digits to texts."""
    base, facts = split_annotated(annotation)
    options = next((fact.values for fact in facts if isinstance(fact, OneOf)), None)
    if options:
        return Literal[options]
    facts = facts or (DEFAULT_RANGE if base in (int, float) else ())
    facts = tuple(fact for fact in facts if not isinstance(fact, Keys))
    return reduce(lambda kind, fact: Annotated[kind, fact], facts, _strict_base(base, facts))


def _strict_base(base: Any, facts: Sequence[Any]) -> Any:
    parts = [_strict(part) for part in _texts_last(get_args(base))] if get_origin(base) is not Literal else []
    if base in (Any, object, NONE_TYPE) or get_origin(base) is Literal:
        return base
    if is_union(base):
        others = [part for part in dict.fromkeys(parts) if part is not NONE_TYPE]
        chosen = Annotated[reduce(or_, others), Field(union_mode="left_to_right")] if len(others) > 1 else others[0]
        return chosen | None if NONE_TYPE in parts else chosen
    if base in (int, bool):
        return Annotated[base, Strict()]
    if base is float:
        return Annotated[float, Strict(), AllowInfNan(False)]
    if get_origin(base) is tuple:
        return Annotated[list[parts[0]], Len(len(parts), len(parts))]  # type: ignore[valid-type]
    if get_origin(base) in SEQUENCE_TYPES:
        return list[parts[0]]  # type: ignore[valid-type]
    if get_origin(base) in MAPPING_TYPES:
        key, value = (_strict(part) for part in get_args(base))
        return dict[key, value]  # type: ignore[valid-type]
    if is_text(base):
        checks = () if allows_empty(facts) else (AfterValidator(_filled),)
        return Annotated[str, Strict(), BeforeValidator(_digits), *checks]
    return Annotated[Any, AfterValidator(_is_node)]


def _digits(value: Any) -> Any:
    """A whole number as its digits, since 7 may be a class name. The spelling of other numbers is unknown here."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _filled(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError("empty", "is empty")
    return value


def _is_node(value: Any) -> Any:
    if not (isinstance(value, Mapping) and "_target_" in value):
        raise PydanticCustomError("part", "is not a part")
    return value


def _texts_last(parts: Sequence[Any]) -> list[Any]:
    """The members of a union in the order of the attempts: numbers before texts."""
    return sorted(parts, key=lambda part: is_text(split_annotated(part)[0]))


def _wrong(value: Any, annotation: Any, key: str, error: ValidationError) -> Violation:
    """The most deeply nested error of pydantic as a violation."""
    paths = [_walked(value, line["loc"]) for line in error.errors(include_url=False, include_context=False)]
    path, name = max(paths, key=lambda path: len(path[0]))
    for step in path:
        value, annotation = value[step], _inner(annotation, step)
        key += f"[{step}]" if isinstance(step, int) else f".{step}"
    if name is not None:
        names = next(fact.values for fact in split_annotated(get_args(split_annotated(annotation)[0])[0])[1])
        return Violation(key, f"{key}.{name}={format_value(value[name])}: unknown key; {suggest(name, names)}")
    if (renamed := renamed_value(f"{key}={format_value(value)}")) is not None:
        return Violation(key, renamed)
    may_be_text = accepts_text(annotation) and isinstance(value, (bool, float, NONE_TYPE))
    quoted = f"'{format_value(value)}'"
    advice = f'; to give it as a text, write {key}="{quoted}", in a file {quoted}' if may_be_text else ""
    return Violation(key, f"{key}={format_value(value)}: allowed are {describe_allowed(annotation)}{advice}")


def _walked(value: Any, loc: Sequence[Any]) -> tuple[list[Any], str | None]:
    """The steps of pydantic's path that lead into the value (others name members of unions), and the key if the key
    itself is wrong."""
    steps: list[Any] = []
    for i, step in enumerate(loc):
        if isinstance(value, Mapping) and step in value:
            if loc[i + 1 :] == ("[key]",):
                return steps, str(step)
        elif not (isinstance(value, list) and isinstance(step, int)):
            continue
        steps.append(step)
        value = value[step]
    return steps, None


def _inner(annotation: Any, step: Any) -> Any:
    """The annotation of the values at a step into a value."""
    containers = (*SEQUENCE_TYPES, tuple) if isinstance(step, int) else MAPPING_TYPES
    base = next(
        split_annotated(part)[0]
        for part in union_members(annotation)
        if get_origin(split_annotated(part)[0]) in containers
    )
    return get_args(base)[-1] if get_origin(base) in MAPPING_TYPES else get_args(base)[0]
