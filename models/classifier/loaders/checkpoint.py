"""Weights from a checkpoint: selection of the state dict, renaming of its entries, and its normalization."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classifier_lens.models.classifier.loaders.class_names import check_class_order
from classifier_lens.models.classifier.loaders.weight_file import read_weights
from classifier_lens.runner.configuration.value_ranges import AnyText
from classifier_lens.runner.types import UserError

# `{from: pattern, to: replacement}` renames, `{drop: pattern}` removes; patterns are regular expressions.
RenameRule = Mapping[str, AnyText]
# Mean and standard deviation per RGB channel, for images in [0, 1].
MeanStd = tuple[list[float], list[float]]

StateDict = Mapping[str, Tensor]

MAX_NAMES_SHOWN = 3  # names of weights in one message

# Counters that training scripts save and that do not affect the outputs.
COUNTER_SUFFIXES = (".num_batches_tracked", "n_averaged", "total_ops", "total_params")
# Attributes by which PyTorch's wrappers of single modules refer to the wrapped module.
WRAPPER_NAMES = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Constants that normalize the image, which affect the outputs; not the running statistics of batch normalization.
NORMALIZATION_NAMES = re.compile(r"(?:^|[._])(?<!running_)(?:mean|std|mu|sigma)$")


def load_checkpoint(
    network: nn.Module,
    path: Path,
    state_dict_entries: Sequence[str],
    key_mapping: Sequence[RenameRule],
    key: str,
    labels: Sequence[str] = (),
) -> MeanStd | None:
    """Load weights from a file and return the normalization that it contains, None if there is none.

    The normalization, entries `mean` and `std`, is not loaded into the network, which receives normalized images.

    Args:
        state_dict_entries: names of entries of the file; the first that exists contains the weights. If none exists,
            the entry whose names match the network is used, or the file itself. Other entries that match, such as
            averaged weights, are listed on stderr.
        key_mapping: rules that rename the weights, applied in order. The names of PyTorch's wrappers and a common
            prefix of the network's weights are removed without a rule. Weights without that prefix, such as those of a
            loss, are ignored and listed on stderr.
        key: configuration key and value that begin error messages.
        labels: the classes, whose order the file may not contradict.

    Raises:
        UserError: the file is missing, unreadable, of another architecture, contains code, or lists the same classes in
            another order.
    """
    network_state = network.state_dict()
    content = read_weights(path, key)
    check_class_order(key, content, labels)

    def matches(state: StateDict) -> bool:
        try:
            renamed = _rename_weights(state, key_mapping, key)
            prefix = _common_prefix(renamed, network_state, key)
            return not _describe_mismatch(_remove_prefix(renamed, prefix)[0], network_state)
        except UserError:
            return False

    renamed = _rename_weights(_select_state_dict(content, state_dict_entries, matches, key), key_mapping, key)
    state, ignored = _remove_prefix(renamed, prefix := _common_prefix(renamed, network_state, key))
    if ignored:
        more = f" and {len(ignored) - MAX_NAMES_SHOWN} more" if len(ignored) > MAX_NAMES_SHOWN else ""
        print(f"{key}: uses {prefix}*; ignores {', '.join(ignored[:MAX_NAMES_SHOWN])}{more}", file=sys.stderr)
    normalization = _pop_normalization(state, key)
    _load_state(network, state, key)
    return normalization


def _state_dicts(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], StateDict]]:
    """All dictionaries of tensors in the content of a file, at most two levels deep, with the names that lead there."""
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) == len(content):
            yield path, tensors
        elif len(path) < 2:
            for name, value in content.items():
                yield from _state_dicts(value, (*path, str(name)))


def _select_state_dict(
    content: Any, state_dict_entries: Sequence[str], matches: Callable[[StateDict], bool], key: str
) -> dict[str, Tensor]:
    """The state dict in the content of a file. Raises UserError if it is missing or ambiguous."""
    if not isinstance(content, Mapping):
        raise UserError(
            f"{key}: contains a {type(content).__name__}; allowed is a state dict, or a dict that contains one"
        )
    state_dict_entries = [state_dict_entries] if isinstance(state_dict_entries, str) else state_dict_entries
    entries = {".".join(path): state for path, state in _state_dicts(content)}
    matching = {name: state for name, state in entries.items() if matches(state)}
    selectable = {str(name): value for name, value in content.items() if isinstance(value, Mapping)} | entries
    selected = next((name for name in state_dict_entries if name in selectable), None)
    if selected is None and len(matching) > 1:
        raise UserError(
            f"{key}: the entries {', '.join(matching)} match the network; "
            f"classifier.state_dict_entries=[{next(iter(matching))}] selects one"
        )
    if selected is None:
        selected, state = next(iter(matching.items()), ("", content))
    else:
        state = selectable[selected]
    if others := [name for name in matching if name != selected]:
        print(
            f"{key}: uses {selected or 'the file itself'}; {', '.join(others)} would match too, "
            f"classifier.state_dict_entries=[{others[0]}] selects it",
            file=sys.stderr,
        )
    if non_tensors := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"{key}: contains {', '.join(non_tensors[:5])}, which are not weights; "
            f"classifier.state_dict_entries={list(state_dict_entries)} has to name the entry of the weights"
        )
    return {str(name): value for name, value in state.items()}


def _common_prefix(state: StateDict, network_state: StateDict, key: str) -> str:
    """The prefix of the network's weights in a state dict, which data-parallel wrappers and training loops add.

    Raises UserError if the weights exist under several prefixes.
    """
    names = [name for name in network_state if not name.endswith(COUNTER_SUFFIXES)]
    if not names or names[0] in state:
        return ""
    candidates = (name[: -len(names[0])] for name in state if name.endswith(f".{names[0]}"))
    prefixes = [prefix for prefix in candidates if all(f"{prefix}{name}" in state for name in names)]
    if len(prefixes) > 1:
        rule = f"{{drop: '^{re.escape(prefixes[1])}'}}"
        raise UserError(
            f"{key}: the network's weights exist with the prefixes {', '.join(prefixes)}; "
            f"classifier.key_mapping=[{rule}] removes one"
        )
    return prefixes[0] if prefixes else ""


def _remove_prefix(state: StateDict, prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict without a prefix, and the names of ignored entries: those without the prefix, unless they are a
    normalization or counters."""
    ignored = [
        name
        for name in state
        if not name.startswith(prefix) and not NORMALIZATION_NAMES.search(name) and not name.endswith(COUNTER_SUFFIXES)
    ]
    return {name.removeprefix(prefix): value for name, value in state.items() if name not in set(ignored)}, ignored


def _rename_weights(state: StateDict, rename_rules: Sequence[RenameRule], key: str) -> dict[str, Tensor]:
    """A state dict with renamed entries and without the names of wrappers. Raises UserError if two names become
    equal."""
    renamed: dict[str, Tensor] = {}
    old_names: dict[str, str] = {}
    for old, value in state.items():
        if (new := _new_name(WRAPPER_NAMES.sub("", old), rename_rules)) is None:
            continue
        if new in renamed:
            raise UserError(
                f"{key}: classifier.key_mapping renames both {old_names[new]} and {old} to {new}; drop one of them"
            )
        renamed[new], old_names[new] = value, old
    return renamed


def _new_name(name: str, rename_rules: Sequence[RenameRule]) -> str | None:
    """The name of a weight after all rules, None if one removes it. Raises UserError for an invalid rule."""
    for rule in rename_rules:
        try:
            if set(rule) == {"drop"}:
                if re.search(rule["drop"], name):
                    return None
            elif set(rule) == {"from", "to"}:
                name = re.sub(rule["from"], rule["to"], name)
            else:
                raise UserError(f"classifier.key_mapping={dict(rule)}: a rule is {{from: …, to: …}} or {{drop: …}}")
        except re.error as error:
            raise UserError(f"classifier.key_mapping={dict(rule)}: is not a regular expression: {error}") from error
    return name


def _pop_normalization(state: dict[str, Tensor], key: str) -> MeanStd | None:
    """`mean` and `std`, removed from the state dict. Raises UserError if one is missing or not of three channels."""
    values = {name: state.pop(name) for name in ("mean", "std") if name in state}
    if not values:
        return None
    if len(values) != 2 or any(value.numel() != 3 for value in values.values()):
        shapes = ", ".join(f"{name} of shape {tuple(value.shape)}" for name, value in values.items())
        raise UserError(f"{key}: has a normalization of {shapes}; allowed are mean and std of 3 channels")
    return values["mean"].flatten().tolist(), values["std"].flatten().tolist()


def _describe_mismatch(state: StateDict, network_state: StateDict) -> str:
    """The difference of names, shapes and types between a state dict and that of the network; empty if they match."""
    missing = [name for name in network_state if name not in state and not name.endswith(COUNTER_SUFFIXES)]
    allowed = {*network_state, "mean", "std"}
    unexpected = [name for name in state if name not in allowed and not name.endswith(COUNTER_SUFFIXES)]
    if missing or unexpected:
        missing_weights = f"{len(missing)} weights are missing" + (f", such as {missing[0]}" if missing else "")
        more_weights = f"{len(unexpected)} are unexpected" + (f", such as {unexpected[0]}" if unexpected else "")
        return f"{missing_weights}; {more_weights}; classifier.key_mapping renames and removes weights"
    for name, value in state.items():
        if name in network_state and value.shape != network_state[name].shape:
            return f"{name} has shape {tuple(value.shape)}, the network's has {tuple(network_state[name].shape)}"
        if name in network_state and not _have_compatible_types(name, value, network_state[name]):
            return (
                f"{name} is of type {value.dtype}, the network's of {network_state[name].dtype}; "
                "quantized weights are not supported"
            )
    return ""


def _have_compatible_types(name: str, value: Tensor, network_value: Tensor) -> bool:
    """Whether both are integers or both are floating-point numbers.

    In a state dict that was converted to half precision as a whole, counters and integer constants are floating-point
    numbers; they are compatible if the network does not need them or has the same values.
    """
    if value.is_floating_point() == network_value.is_floating_point():
        return True
    is_same = name.endswith(COUNTER_SUFFIXES) or torch.equal(value.to(network_value), network_value)
    return value.is_floating_point() and is_same


def _load_state(network: nn.Module, state: StateDict, key: str) -> None:
    """Load all weights, converted to the type of the network. Raises UserError if they do not match the network."""
    if mismatch := _describe_mismatch(state, network.state_dict()):
        raise UserError(f"{key}: cannot be loaded: {mismatch}")
    network.load_state_dict(state, strict=False)
