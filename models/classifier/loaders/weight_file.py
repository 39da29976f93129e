"""What a file of weights holds: one of safetensors or of torch.save, of which no code is run."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import pickle
import pickletools
import re
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from classifier_lens.models.hub import NO_WEIGHTS_HINT
from classifier_lens.runner.types import UserError, first_line


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


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """An empty array, which the rest of a pickle fills; of no class that is derived."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("Unsupported array")
    return np.empty(shape, code.decode())


# What lies beside weights and holds no code: a script's arguments, paths, times, NumPy's numbers and arrays.
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace, types.SimpleNamespace, datetime.datetime, datetime.timedelta, np.ndarray,
    pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath, np.dtype,
    (_array, "numpy.core.multiarray._reconstruct"), (_array, "numpy._core.multiarray._reconstruct"),
    (pathlib.PurePosixPath, "pathlib._local.PosixPath"), (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
    *{type(np.dtype(code)) for code in f"?SU{np.typecodes['AllInteger']}{np.typecodes['AllFloat']}"},
    (_plain_text, "_codecs.encode"), (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]  # fmt: skip


def read_weights(path: Path, key: str) -> Any:
    """What a file holds. Raises UserError, which begins with `key`, if it is missing, damaged or no file of weights, or
    if it holds code."""
    if not path.is_file():
        raise UserError(
            f"{key}: no such file; give a .safetensors file or a torch.save'd state dict; {NO_WEIGHTS_HINT}"
        )
    safe = _is_safetensors(path, key)
    try:
        if safe:
            return load_file(path)
        # Of a path PyTorch would go by its ending.
        with torch.serialization.safe_globals(SAFE_GLOBALS), open(path, "rb") as file:
            return torch.load(file, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not any(text in str(error) for text in UNPICKLING_REFUSALS):
            raise UserError(f"{key}: cannot be loaded: it is damaged") from error
        raise UserError(f"{key}: {_advice(path, str(error))}") from error
    except (SafetensorError, EOFError, LookupError, RuntimeError, OSError, *_BROKEN) as error:
        if "TorchScript" in str(error):
            advice = "torch.save(torch.jit.load('in.pt').state_dict(), 'out.pt')"
            raise UserError(f"{key}: is a TorchScript archive, a program; save its weights: {advice}") from error
        raise UserError(f"{key}: cannot be loaded: {first_line(error)}") from error


UNPICKLING_REFUSALS = ("Unsupported", "Can only build")  # what PyTorch says of what it does not unpickle
_BROKEN = (ValueError, TypeError, AttributeError, ArithmeticError)  # what a damaged pickle may end in


def _is_safetensors(path: Path, key: str) -> bool:
    """Whether a file is one of safetensors, and not one of torch.save, by what it begins with: names may deceive.
    Raises UserError if it is neither."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start[8:9] == b"{" or start.startswith((b"PK", b"\x80")):
        return start[8:9] == b"{"
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{key}: cannot be loaded: is a pointer of Git LFS; `git lfs pull` gets the file")
    found = f"it begins with {start[:12]!r}" if start else "it is empty"
    raise UserError(f"{key}: cannot be loaded: is no file of safetensors or of torch.save ({found})")


def _advice(path: Path, said: str) -> str:
    """What a file holds that is not unpickled, and how its weights are saved without it."""
    found = re.search(r"(?:GLOBAL|global|class) [`']?((?:\w+\.)*\w+)", said)
    kind = found[1] if found else "a class"
    entry, ops = _entry(path, kind), _operations(path)
    where = "where its classes can be imported"
    if "Unsupported operand" in said:
        again = "torch.save(pickle.load(open('in.pkl', 'rb')), 'out.pt')"
        return (
            f"is a pickle that torch.save did not write, which is never unpickled here; save it anew, {where}: {again}"
        )
    never = f"holds pickled code ({kind}{f' in its entry {entry}' if entry else ''}), which is never run here"
    if "dill" in said:
        with_dill = "torch.load('in.pt', pickle_module=dill, weights_only=False)"
        return f"{never}; it was written by dill: strip it once, {where}: torch.save({with_dill}['model'], 'out.pt')"
    loaded = "torch.load('in.pt', map_location='cpu', weights_only=False)"
    first = next((name for name, _ in ops if name not in ("PROTO", "FRAME")), "")
    if ops and first not in ("EMPTY_DICT", "EMPTY_LIST", "MARK"):
        weights = f"torch.save({loaded}.state_dict(), 'out.pt')"
        return f"{never}: the network itself was saved; save its weights, {where}: {weights}"
    if entry in MODULE_ENTRIES:
        weights = f"torch.save({loaded}['{entry}'].state_dict(), 'out.pt')"
        return f"{never}: a network itself was saved there; save its weights, {where}: {weights}"
    return f"{never}; save the entry of the weights alone, {where}: torch.save({loaded}['state_dict'], 'out.pt')"


MODULE_ENTRIES = ("model", "net", "network", "ema", "model_ema", "ema_model", "module", "classifier", "backbone")


def _operations(path: Path) -> list[tuple[str, Any]]:
    """What a file's pickle is made of, each with its argument, up to what ends it; nothing of it is unpickled. None
    where it is not known to lie in a file of torch.save."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if name is None:
            return []
        with archive.open(name) as file:
            return [(op.name, argument) for op, argument, _ in pickletools.genops(file)]


def _entry(path: Path, kind: str) -> str:
    """The entry of a file's dictionary that begins with an object of a class, empty where none does."""
    last = ""
    for name, argument in _operations(path):
        if name == "GLOBAL" and str(argument).replace(" ", ".").endswith(kind):
            return last
        last = argument if name == "BINUNICODE" else last if name in ("BINPUT", "LONG_BINPUT", "MARK") else ""
    return ""
