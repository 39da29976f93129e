"""Reading of weight files (safetensors or torch.save) without running code, and advice for files that contain code."""

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
    """Stands for `codecs.encode` in pickles, which write bytes, also those of NumPy numbers, as Latin-1 text."""
    if encoding != "latin1" or not isinstance(value, str):
        raise pickle.UnpicklingError("Unsupported encoding of bytes")
    return value.encode("latin1")


def _number(kind: np.dtype[Any], data: bytes = b"") -> Any:
    """A NumPy number; Python objects are refused."""
    if not isinstance(kind, np.dtype) or kind.hasobject or not isinstance(data, bytes):
        raise pickle.UnpicklingError("Unsupported number")
    return np.frombuffer(data, kind)[0]


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """An empty array, which the rest of the pickle fills; subclasses are refused."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("Unsupported array")
    return np.empty(shape, code.decode())


# Classes without code that checkpoints contain beside weights: arguments of a script, paths, times, NumPy values.
SAFE_GLOBALS: list[Any] = [
    argparse.Namespace, types.SimpleNamespace, datetime.datetime, datetime.timedelta, np.ndarray,
    pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath, np.dtype,
    (_array, "numpy.core.multiarray._reconstruct"), (_array, "numpy._core.multiarray._reconstruct"),
    (pathlib.PurePosixPath, "pathlib._local.PosixPath"), (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
    *{type(np.dtype(code)) for code in f"?SU{np.typecodes['AllInteger']}{np.typecodes['AllFloat']}"},
    (_plain_text, "_codecs.encode"), (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]  # fmt: skip


REFUSAL_MESSAGES = ("Unsupported", "Can only build")  # of PyTorch, for classes that it does not unpickle
DAMAGE_ERRORS = (  # of safetensors and PyTorch, for damaged files
    SafetensorError, EOFError, LookupError, RuntimeError, OSError, ValueError, TypeError, AttributeError,
    ArithmeticError,
)  # fmt: skip
# Entries of checkpoints in which training scripts save networks.
MODULE_ENTRIES = ("model", "net", "network", "ema", "model_ema", "ema_model", "module", "classifier", "backbone")


def read_weights(path: Path, key: str) -> Any:
    """The content of a file of weights.

    Raises UserError, which begins with `key`, if the file is missing, damaged, of another format or contains code.
    """
    if not path.is_file():
        raise UserError(
            f"{key}: no such file; give a .safetensors file or a torch.save'd state dict; {NO_WEIGHTS_HINT}"
        )
    safe = _is_safetensors(path, key)
    try:
        if safe:
            return load_file(path)
        # Given a path, PyTorch would decide by its suffix.
        with torch.serialization.safe_globals(SAFE_GLOBALS), open(path, "rb") as file:
            return torch.load(file, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not any(text in str(error) for text in REFUSAL_MESSAGES):
            raise UserError(f"{key}: cannot be loaded: it is damaged") from error
        raise UserError(f"{key}: {_conversion_advice(path, str(error))}") from error
    except DAMAGE_ERRORS as error:
        if "TorchScript" in str(error):
            advice = "torch.save(torch.jit.load('in.pt').state_dict(), 'out.pt')"
            raise UserError(f"{key}: is a TorchScript program; save its weights: {advice}") from error
        raise UserError(f"{key}: cannot be loaded: {first_line(error)}") from error


def _is_safetensors(path: Path, key: str) -> bool:
    """Whether a file is in the format of safetensors and not of torch.save, by its first bytes.

    Raises UserError if it is in neither format.
    """
    with open(path, "rb") as file:
        start = file.read(64)
    if start[8:9] == b"{" or start.startswith((b"PK", b"\x80")):
        return start[8:9] == b"{"
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{key}: cannot be loaded: it is a pointer of Git LFS; `git lfs pull` gets the file")
    content = f"it begins with {start[:12]!r}" if start else "it is empty"
    raise UserError(f"{key}: cannot be loaded: it is not a file of safetensors or of torch.save ({content})")


def _conversion_advice(path: Path, message: str) -> str:
    """The code that a file contains, by PyTorch's error message, and a command that saves the weights alone."""
    match = re.search(r"(?:GLOBAL|global|class) [`']?((?:\w+\.)*\w+)", message)
    class_name = match[1] if match else "a class"
    entry, operations = _entry_of_class(path, class_name), _pickle_operations(path)
    where = "where its classes can be imported"
    if "Unsupported operand" in message:
        command = "torch.save(pickle.load(open('in.pkl', 'rb')), 'out.pt')"
        return (
            "is a pickle that torch.save did not write, which is never unpickled here; "
            f"save it again, {where}: {command}"
        )
    reason = f"contains pickled code ({class_name}{f' in its entry {entry}' if entry else ''}), which is never run here"
    if "dill" in message:
        load = "torch.load('in.pt', pickle_module=dill, weights_only=False)"
        return f"{reason}; it was written by dill: save the weights, {where}: torch.save({load}['model'], 'out.pt')"
    load = "torch.load('in.pt', map_location='cpu', weights_only=False)"
    first = next((name for name, _ in operations if name not in ("PROTO", "FRAME")), "")
    if operations and first not in ("EMPTY_DICT", "EMPTY_LIST", "MARK"):
        command = f"torch.save({load}.state_dict(), 'out.pt')"
        return f"{reason}: it is a network, not its weights; save the weights, {where}: {command}"
    if entry in MODULE_ENTRIES:
        command = f"torch.save({load}['{entry}'].state_dict(), 'out.pt')"
        return f"{reason}: the entry is a network, not its weights; save the weights, {where}: {command}"
    return f"{reason}; save the entry of the weights alone, {where}: torch.save({load}['state_dict'], 'out.pt')"


def _pickle_operations(path: Path) -> list[tuple[str, Any]]:
    """The operations of a file's pickle with their arguments, without unpickling; empty if it is not a zip file."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if name is None:
            return []
        with archive.open(name) as file:
            return [(op.name, argument) for op, argument, _ in pickletools.genops(file)]


def _entry_of_class(path: Path, class_name: str) -> str:
    """The entry of a file's dictionary that is an object of a class, empty if there is none."""
    last_string = ""
    for name, argument in _pickle_operations(path):
        if name == "GLOBAL" and str(argument).replace(" ", ".").endswith(class_name):
            return last_string
        if name == "BINUNICODE":
            last_string = argument
        elif name not in ("BINPUT", "LONG_BINPUT", "MARK"):
            last_string = ""
    return ""
