"""Unpickling of plain values and NumPy arrays, as in the batches of CIFAR-10, without running other code."""

from __future__ import annotations

import io
import pickle
from typing import Any

# Functions in pickles of NumPy, under their names before and since version 2; Python 3 uses `encode` when it writes
# bytes for Python 2.
NUMPY_GLOBALS = frozenset(
    {
        *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
        *((module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")),
        *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
    }
)


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that refuses everything except plain values, containers and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NUMPY_GLOBALS:
            raise pickle.UnpicklingError(f"contains code ({module}.{name}), which is never run")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def unpickle_arrays(content: bytes) -> Any:
    """The content of a pickle of plain values and arrays; texts of Python 2 are decoded as Latin-1.

    Raises pickle.UnpicklingError if it is damaged or contains code other than NumPy's constructors.
    """
    try:
        return ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except (EOFError, ImportError, LookupError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise pickle.UnpicklingError(f"is damaged ({type(error).__name__})") from error
