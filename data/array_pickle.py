"""Pickles of plain values and NumPy arrays, as CIFAR-10's batches are; one that calls anything else is refused."""

from __future__ import annotations

import io
import pickle
from typing import Any

# What NumPy's own pickles call, under its names before and since version 2; `encode` is how Python 3 writes bytes for
# Python 2 to read.
NUMPY_GLOBALS = frozenset(
    {
        *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
        *((module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")),
        *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
    }
)


class ArrayUnpickler(pickle.Unpickler):
    """Reads nothing but containers of plain values and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NUMPY_GLOBALS:
            raise pickle.UnpicklingError(f"holds code ({module}.{name}), which is never run")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def unpickle_arrays(content: bytes) -> Any:
    """What a pickle of plain values and arrays holds, texts of Python 2 read as Latin-1.

    Raises pickle.UnpicklingError, in words, if it is damaged or would call anything but NumPy's own constructors.
    """
    try:
        return ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except (EOFError, ImportError, LookupError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise pickle.UnpicklingError(f"is damaged ({type(error).__name__})") from error
