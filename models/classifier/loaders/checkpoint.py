"""Weights from files: where in a file they lie, what they are called there, and the normalisation beside them."""

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

# `{from: pattern, to: replacement}` renames, `{drop: pattern}` leaves out; patterns are regular expressions.
RenameRule = Mapping[str, AnyText]
# Mean and standard deviation per RGB channel, of pictures in [0, 1].
MeanStd = tuple[list[float], list[float]]

StateDict = Mapping[str, Tensor]

MAX_NAMES_SHOWN = 3  # weights that a line about many names

# What training scripts save that is no weight of the network: counters that a network does without.
COUNTER_SUFFIXES = (".num_batches_tracked", "n_averaged", "total_ops", "total_params")
# Under which names PyTorch's wrappers of single modules hold what they wrap.
WRAPPER_NAMES = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What an image is normalised by, and no statistic of batch normalisation: without it answers would be others.
NORMALIZATION_NAMES = re.compile(r"(?:^|[._])(?<!running_)(?:mean|std|mu|sigma)$")


def load_checkpoint(
    network: nn.Module,
    path: Path,
    state_dict_entries: Sequence[str],
    key_mapping: Sequence[RenameRule],
    key: str,
    labels: Sequence[str] = (),
) -> MeanStd | None:
    """Load weights from a file; returns the normalisation that lies among them, None where there is none.

    state_dict_entries: entries of the file of which the first that is there holds the weights; where none is, the entry
    whose names fit the network does, or the file itself. Another entry that fits as well, such as one of averaged
    weights, is named on stderr; key_mapping: rules that are applied, in their order, to the names of the weights; names
    of PyTorch's wrappers in them, and a prefix that all of the network's names have in the file, are taken off by
    themselves; what has no such prefix, such as weights of a loss, is left out and named on stderr. What is called
    `mean` and `std` then is the normalisation, which the network is not given: it must not be done twice; key: the key
    and value that errors point at; labels: the classes, in the order that the file is not to contradict. Raises
    UserError if the file is missing, unreadable or of another architecture, if it holds code, or the same classes in
    another order."""
    wanted = network.state_dict()
    content = read_weights(path, key)
    check_class_order(key, content, labels)

    def fits(state: StateDict) -> bool:
        try:
            renamed = _renamed(state, key_mapping, key)
            return not _unlike(_without_prefix(renamed, _prefix(renamed, wanted, key))[0], wanted)
        except UserError:
            return False

    renamed = _renamed(_weights(content, state_dict_entries, fits, key), key_mapping, key)
    state, left_out = _without_prefix(renamed, prefix := _prefix(renamed, wanted, key))
    if left_out:
        more = f" and {len(left_out) - MAX_NAMES_SHOWN} more" if len(left_out) > MAX_NAMES_SHOWN else ""
        print(
            f"{key}: takes the weights {prefix}*; left out: {', '.join(left_out[:MAX_NAMES_SHOWN])}{more}",
            file=sys.stderr,
        )
    normalisation = _normalisation(state, key)
    _fill(network, state, key)
    return normalisation


def _entries(content: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], StateDict]]:
    """Every dictionary of tensors in what a file holds, at most two deep, with its place."""
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) == len(content):
            yield at, tensors
        elif len(at) < 2:
            for name, value in content.items():
                yield from _entries(value, (*at, str(name)))


def _weights(
    content: Any, state_dict_entries: Sequence[str], fits: Callable[[StateDict], bool], key: str
) -> dict[str, Tensor]:
    """The state dict in what a file holds."""
    if not isinstance(content, Mapping):
        raise UserError(f"{key}: holds a {type(content).__name__}; allowed is a state dict, or a dict that has one")
    state_dict_entries = [state_dict_entries] if isinstance(state_dict_entries, str) else state_dict_entries
    entries = {".".join(at): state for at, state in _entries(content)}
    fitting = {name: state for name, state in entries.items() if fits(state)}
    known = {str(name): value for name, value in content.items() if isinstance(value, Mapping)} | entries
    chosen = next((name for name in state_dict_entries if name in known), None)
    if chosen is None and len(fitting) > 1:
        named = ", ".join(fitting)
        raise UserError(
            f"{key}: the network's weights stand in {named}; "
            f"classifier.state_dict_entries=[{next(iter(fitting))}] chooses"
        )
    if chosen is None:
        chosen, state = next(iter(fitting.items()), ("", content))
    else:
        state = known[chosen]
    if others := [name for name in fitting if name != chosen]:
        print(
            f"{key}: takes {chosen or 'the file itself'}; {', '.join(others)} would fit as well, "
            f"classifier.state_dict_entries=[{others[0]}] chooses it",
            file=sys.stderr,
        )
    if no_weights := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"{key}: holds {', '.join(no_weights[:5])}, which are no weights; "
            f"classifier.state_dict_entries={list(state_dict_entries)} has to name the entry of the weights"
        )
    return {str(name): value for name, value in state.items()}


def _prefix(state: StateDict, wanted: StateDict, key: str) -> str:
    """What all of the network's names begin with in a state dict, as wrappers of several devices and training loops
    leave it. Raises UserError if they stand there under several prefixes."""
    needed = [name for name in wanted if not name.endswith(COUNTER_SUFFIXES)]
    if not needed or needed[0] in state:
        return ""
    ends = (name[: -len(needed[0])] for name in state if name.endswith(f".{needed[0]}"))
    prefixes = [p for p in ends if all(f"{p}{name}" in state for name in needed)]
    if len(prefixes) > 1:
        others = ", ".join(prefixes)
        rule = f"{{drop: '^{re.escape(prefixes[1])}'}}"
        raise UserError(
            f"{key}: the network's weights stand there as {others}; classifier.key_mapping=[{rule}] leaves out one"
        )
    return prefixes[0] if prefixes else ""


def _without_prefix(state: StateDict, prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict without a prefix, and the names of what has none and changes no answer of the network."""
    left_out = [
        n
        for n in state
        if not n.startswith(prefix) and not NORMALIZATION_NAMES.search(n) and not n.endswith(COUNTER_SUFFIXES)
    ]
    return {name.removeprefix(prefix): value for name, value in state.items() if name not in set(left_out)}, left_out


def _renamed(state: StateDict, rename_rules: Sequence[RenameRule], key: str) -> dict[str, Tensor]:
    """A state dict without the names of wrappers, under the names that the rules make. Raises UserError where two
    become one."""
    found: dict[str, Tensor] = {}
    came_from: dict[str, str] = {}
    for old, value in state.items():
        if (new := _new_name(WRAPPER_NAMES.sub("", old), rename_rules)) is None:
            continue
        if new in found:
            raise UserError(
                f"{key}: by classifier.key_mapping both {came_from[new]} and {old} become {new}; drop one of them"
            )
        found[new], came_from[new] = value, old
    return found


def _new_name(name: str, rename_rules: Sequence[RenameRule]) -> str | None:
    """What a weight is called by the rules, None if it is left out."""
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
            raise UserError(f"classifier.key_mapping={dict(rule)}: is no regular expression: {error}") from error
    return name


def _normalisation(state: dict[str, Tensor], key: str) -> MeanStd | None:
    """`mean` and `std`, taken out of a state dict. Raises UserError if one is missing or not of three channels."""
    found = {name: state.pop(name) for name in ("mean", "std") if name in state}
    if not found:
        return None
    if len(found) != 2 or any(value.numel() != 3 for value in found.values()):
        shapes = ", ".join(f"{name} of shape {tuple(value.shape)}" for name, value in found.items())
        raise UserError(f"{key}: has a normalisation of {shapes}; allowed are mean and std of 3 channels")
    return found["mean"].flatten().tolist(), found["std"].flatten().tolist()


def _unlike(state: StateDict, wanted: StateDict) -> str:
    """How the names and shapes of weights differ from those of a network, empty where they do not."""
    missing = [name for name in wanted if name not in state and not name.endswith(COUNTER_SUFFIXES)]
    left_over = [n for n in state if n not in wanted and n not in ("mean", "std") and not n.endswith(COUNTER_SUFFIXES)]
    if missing or left_over:
        lacking = f"{len(missing)} weights are missing" + (f", such as {missing[0]}" if missing else "")
        over = f"{len(left_over)} are left over" + (f", such as {left_over[0]}" if left_over else "")
        return f"{lacking}; {over}; classifier.key_mapping renames weights and leaves out others"
    for name, value in state.items():
        if name in wanted and value.shape != wanted[name].shape:
            return f"{name} has shape {tuple(value.shape)}, the network's has {tuple(wanted[name].shape)}"
        if name in wanted and not _of_a_kind(name, value, wanted[name]):
            return (
                f"{name} is of type {value.dtype}, the network's of {wanted[name].dtype}: quantized weights have scales"
            )
    return ""


def _of_a_kind(name: str, value: Tensor, wanted: Tensor) -> bool:
    """Whether both are whole numbers or both are not; where a whole state was halved, its counters and constants are no
    whole numbers any more, and the network's own may stay."""
    if value.is_floating_point() == wanted.is_floating_point():
        return True
    return value.is_floating_point() and (name.endswith(COUNTER_SUFFIXES) or torch.equal(value.to(wanted), wanted))


def _fill(network: nn.Module, state: StateDict, key: str) -> None:
    """Give a network all its weights, in its own number format. Raises UserError, with the first names, if they are not
    those of the network."""
    if unlike := _unlike(state, network.state_dict()):
        raise UserError(f"{key}: cannot be loaded: {unlike}")
    network.load_state_dict(state, strict=False)
