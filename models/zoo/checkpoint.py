"""Weights from files: where in a file they lie, what they are called there, and the normalisation beside them."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import pickletools
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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

State = Mapping[str, Tensor]

# What training scripts save that is no weight of the network: counters that a network does without.
COUNTERS = (".num_batches_tracked", "n_averaged")


def _plain_text(value: bytes | str, encoding: str) -> bytes:
    """The one encoding by which pickles write bytes as text; NumPy's numbers are written so."""
    if encoding != "latin1" or not isinstance(value, str):
        raise pickle.UnpicklingError("Unsupported encoding of bytes")
    return value.encode("latin1")


def _number(kind: np.dtype[Any], data: bytes = b"") -> Any:
    """A NumPy number; not one of Python's objects."""
    if not isinstance(kind, np.dtype) or kind.hasobject or not isinstance(data, bytes):
        raise pickle.UnpicklingError("Unsupported number")
    return np.frombuffer(data, kind)[0]


# What lies beside weights and holds no code: a script's arguments, paths, NumPy's numbers.
HARMLESS: list[Any] = [
    argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath, np.dtype,
    (pathlib.PurePosixPath, "pathlib._local.PosixPath"), (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool", "uint8")),
    (_plain_text, "_codecs.encode"), (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]  # fmt: skip


def load_into(
    network: nn.Module, path: Path, inside: Sequence[str], keys: Sequence[Rule], key: str
) -> Normalisation | None:
    """Load weights from a file; returns the normalisation that lies among them, None where there is none.

    inside: entries of the file of which the first that is there holds the weights; where none is, the entry whose
    names fit the network does, or the file itself. Another entry that fits as well, such as one of averaged weights, is
    named on stderr;
    keys: rules that are applied, in their order, to the names of the weights; a prefix that all of the network's names
    have in the file is taken off by itself. What is called `mean` and `std` then is the normalisation, which the
    network is not given: it must not be done twice;
    key: the key and value that errors point at.
    Raises UserError if the file is missing, unreadable or of another architecture, or if it holds code.
    """
    wanted = network.state_dict()
    content = _content(path, key)

    def fits(state: State) -> bool:
        try:
            return not _unlike(_without_prefix(_renamed(state, keys, key), wanted, key), wanted)
        except UserError:
            return False

    state = _without_prefix(_renamed(_weights(content, inside, fits, key), keys, key), wanted, key)
    normalisation = _normalisation(state, key)
    _fill(network, state, key)
    return normalisation


def _content(path: Path, key: str) -> Any:
    """What a file holds; pickled code is not run."""
    if not path.is_file():
        raise UserError(f"{key}: no such file; give a .safetensors file or a torch.save'd state dict; {NEEDS_NONE}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error):
            raise UserError(f"{key}: cannot be loaded: it is damaged") from error
        raise UserError(f"{key}: {_advice(path, str(error))}") from error
    except (SafetensorError, EOFError, LookupError, RuntimeError, OSError, *_BROKEN) as error:
        if "TorchScript" in str(error):
            advice = "torch.save(torch.jit.load('in.pt').state_dict(), 'out.pt')"
            raise UserError(f"{key}: is a TorchScript archive, a program; save its weights: {advice}") from error
        raise UserError(f"{key}: cannot be loaded: {first_line(error)}") from error


_BROKEN = (ValueError, TypeError, AttributeError, ArithmeticError)  # what a damaged pickle may end in


def _advice(path: Path, said: str) -> str:
    """What a file holds that is not unpickled, and how its weights are saved without it."""
    found = re.search(r"(?:GLOBAL|global|class) [`']?([\w.]+\.\w+)", said)
    kind = found[1] if found else "a class"
    never = f"holds pickled code ({kind}), which is never run here"
    where = "where its classes can be imported"
    if "dill" in said:
        with_dill = "torch.load('in.pt', pickle_module=dill, weights_only=False)"
        return f"{never}; it was written by dill: strip it once, {where}: torch.save({with_dill}['model'], 'out.pt')"
    loaded = "torch.load('in.pt', map_location='cpu', weights_only=False)"
    if _is_object(path):
        weights = f"torch.save({loaded}.state_dict(), 'out.pt')"
        return f"{never}: the network itself was saved; save its weights, {where}: {weights}"
    return f"{never}; save the entry of the weights alone, {where}: torch.save({loaded}['state_dict'], 'out.pt')"


def _is_object(path: Path) -> bool:
    """Whether a file of torch.save holds an object, not a dictionary; nothing of it is unpickled."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if name is None:
            return False
        with archive.open(name) as file:
            first = next((op.name for op, _, _ in pickletools.genops(file) if op.name not in ("PROTO", "FRAME")), "")
    return first not in ("EMPTY_DICT", "EMPTY_LIST", "MARK")


def _entries(content: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every dictionary of tensors in what a file holds, at most two deep, with its place."""
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) == len(content):
            yield at, tensors
        elif len(at) < 2:
            for name, value in content.items():
                yield from _entries(value, (*at, str(name)))


def _weights(content: Any, inside: Sequence[str], fits: Callable[[State], bool], key: str) -> dict[str, Tensor]:
    """The state dict in what a file holds."""
    if not isinstance(content, Mapping):
        raise UserError(f"{key}: holds a {type(content).__name__}; allowed is a state dict, or a dict that has one")
    inside = [inside] if isinstance(inside, str) else inside
    entries = {".".join(at): state for at, state in _entries(content)}
    fitting = {name: state for name, state in entries.items() if fits(state)}
    known = {str(name): value for name, value in content.items() if isinstance(value, Mapping)} | entries
    chosen = next((name for name in inside if name in known), None)
    if chosen is None and len(fitting) > 1:
        named = ", ".join(fitting)
        raise UserError(
            f"{key}: the network's weights stand in {named}; classifier.inside=[{next(iter(fitting))}] chooses"
        )
    if chosen is None:
        chosen, state = next(iter(fitting.items()), ("", content))
    else:
        state = known[chosen]
    if others := [name for name in fitting if name != chosen]:
        print(
            f"{key}: takes {chosen or 'the file itself'}; {', '.join(others)} would fit as well, "
            f"classifier.inside=[{others[0]}] chooses it",
            file=sys.stderr,
        )
    if no_weights := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(
            f"{key}: holds {', '.join(no_weights[:5])}, which are no weights; "
            f"classifier.inside={list(inside)} has to name the entry of the weights"
        )
    return {str(name): value for name, value in state.items()}


def _without_prefix(state: State, wanted: State, key: str) -> dict[str, Tensor]:
    """A state dict without the prefix that all of the network's names have in it, as wrappers of several devices, of
    compiled networks and of training loops leave it. Raises UserError if they stand there under several prefixes."""
    needed = [name for name in wanted if not name.endswith(COUNTERS)]
    if not needed or needed[0] in state:
        return dict(state)
    ends = (name[: -len(needed[0])] for name in state if name.endswith(f".{needed[0]}"))
    prefixes = [p for p in ends if all(f"{p}{name}" in state for name in needed)]
    if len(prefixes) > 1:
        others = ", ".join(prefixes)
        rule = f"{{drop: '^{re.escape(prefixes[1])}'}}"
        raise UserError(
            f"{key}: the network's weights stand there as {others}; classifier.keys=[{rule}] leaves out one"
        )
    return {name.removeprefix(p): value for p in prefixes or [""] for name, value in state.items()}


def _renamed(state: State, keys: Sequence[Rule], key: str) -> dict[str, Tensor]:
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


def _unlike(state: State, wanted: State) -> str:
    """How the names and shapes of weights differ from those of a network, empty where they do not."""
    missing = [name for name in wanted if name not in state and not name.endswith(COUNTERS)]
    left_over = [n for n in state if n not in wanted and n not in ("mean", "std") and not n.endswith(COUNTERS)]
    if missing or left_over:
        lacking = f"{len(missing)} weights are missing" + (f", such as {missing[0]}" if missing else "")
        over = f"{len(left_over)} are left over" + (f", such as {left_over[0]}" if left_over else "")
        return f"{lacking}; {over}; classifier.keys renames weights and leaves out others"
    for name, value in state.items():
        if name in wanted and value.shape != wanted[name].shape:
            return f"{name} has shape {tuple(value.shape)}, the network's has {tuple(wanted[name].shape)}"
    return ""


def _fill(network: nn.Module, state: State, key: str) -> None:
    """Give a network all its weights, in its own number format. Raises UserError, with the first names, if they are not
    those of the network."""
    if unlike := _unlike(state, network.state_dict()):
        raise UserError(f"{key}: cannot be loaded: {unlike}")
    network.load_state_dict(state, strict=False)
