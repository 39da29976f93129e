"""Weights from files: where in a file they lie, what they are called there, and the normalisation beside them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.hub import NEEDS_NONE
from runner.ranges import AnyText
from runner.types import UserError, first_line

# `{from: pattern, to: replacement}` renames, `{drop: pattern}` leaves out; patterns are regular expressions.
Rule = Mapping[str, AnyText]
# Mean and standard deviation per RGB channel, of pictures in [0, 1].
Normalisation = tuple[list[float], list[float]]

STRIP = (
    "strip it once, where its package is installed: torch.save(torch.load('in.pt', pickle_module=dill, "
    "weights_only=False)['model'], 'out.pt')"
)


def load_into(
    network: nn.Module, path: Path, inside: Sequence[str], keys: Sequence[Rule], key: str
) -> Normalisation | None:
    """Load weights from a file; returns the normalisation that lies among them, None where there is none.

    inside: entries of the file of which the first that is there holds the weights; where none is, the file itself does;
    keys: rules that are applied, in their order, to the names of the weights. What is called `mean` and `std` then is
    the normalisation, which the network is not given: it must not be done twice;
    key: the key and value that errors point at.
    Raises UserError if the file is missing, unreadable or of another architecture, or if it holds code.
    """
    state = _renamed(_weights(_content(path, key), inside, key), keys, key)
    normalisation = _normalisation(state, key)
    _fill(network, state, key)
    return normalisation


def _content(path: Path, key: str) -> Any:
    """What a file holds; pickled code is not run."""
    if not path.is_file():
        raise UserError(f"{key}: no such file; give a .safetensors file or a torch.save'd state dict; {NEEDS_NONE}")
    try:
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error):
            raise UserError(f"{key}: cannot be loaded: it is damaged") from error
        raise UserError(f"{key}: holds pickled code, of dill for example, which is never run here; {STRIP}") from error
    except (SafetensorError, EOFError, IndexError, RuntimeError) as error:
        raise UserError(f"{key}: cannot be loaded: {first_line(error)}") from error


def _weights(content: Any, inside: Sequence[str], key: str) -> dict[str, Tensor]:
    """The state dict in what a file holds."""
    if isinstance(content, dict):
        content = next((content[name] for name in inside if isinstance(content.get(name), dict)), content)
    if not isinstance(content, dict):
        raise UserError(f"{key}: holds a {type(content).__name__}; allowed is a state dict, or a dict that has one")
    if others := [str(name) for name, value in content.items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"{key}: holds {', '.join(others[:5])}, which are no weights; "
            f"classifier.inside={list(inside)} has to name the entry of the weights"
        )
    return {str(name): value for name, value in content.items()}


def _renamed(state: Mapping[str, Tensor], keys: Sequence[Rule], key: str) -> dict[str, Tensor]:
    """A state dict under the names that the rules make. Raises UserError where two become one."""
    found: dict[str, Tensor] = {}
    came_from: dict[str, str] = {}
    for old, value in state.items():
        if (new := _new_name(old, keys)) is None:
            continue
        if new in found:
            raise UserError(f"{key}: by classifier.keys both {came_from[new]} and {old} become {new}; drop one of them")
        found[new], came_from[new] = value, old
    return found


def _new_name(name: str, keys: Sequence[Rule]) -> str | None:
    """What a weight is called by the rules, None if it is left out."""
    for rule in keys:
        try:
            if set(rule) == {"drop"}:
                if re.search(rule["drop"], name):
                    return None
            elif set(rule) == {"from", "to"}:
                name = re.sub(rule["from"], rule["to"], name)
            else:
                raise UserError(f"classifier.keys={dict(rule)}: a rule is {{from: …, to: …}} or {{drop: …}}")
        except re.error as error:
            raise UserError(f"classifier.keys={dict(rule)}: is no regular expression: {error}") from error
    return name


def _normalisation(state: dict[str, Tensor], key: str) -> Normalisation | None:
    """`mean` and `std`, taken out of a state dict. Raises UserError if one is missing or not of three channels."""
    found = {name: state.pop(name) for name in ("mean", "std") if name in state}
    if not found:
        return None
    if len(found) != 2 or any(value.numel() != 3 for value in found.values()):
        shapes = ", ".join(f"{name} of shape {tuple(value.shape)}" for name, value in found.items())
        raise UserError(f"{key}: has a normalisation of {shapes}; allowed are mean and std of 3 channels")
    return found["mean"].flatten().tolist(), found["std"].flatten().tolist()


def _fill(network: nn.Module, state: Mapping[str, Tensor], key: str) -> None:
    """Give a network all its weights. Raises UserError, with the first names, if they are not those of the network."""
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith(".num_batches_tracked")]
    left_over = [name for name in state if name not in wanted]
    if missing or left_over:
        lacking = f"{len(missing)} weights are missing" + (f", such as {missing[0]}" if missing else "")
        over = f"{len(left_over)} are left over" + (f", such as {left_over[0]}" if left_over else "")
        raise UserError(f"{key}: cannot be loaded: {lacking}; {over}; classifier.keys renames weights")
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            given, asked = tuple(value.shape), tuple(wanted[name].shape)
            raise UserError(f"{key}: cannot be loaded: {name} has shape {given}, the network's has {asked}")
    network.load_state_dict(state, strict=False)
