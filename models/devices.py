"""Names of devices and floating-point types in the configuration."""

from __future__ import annotations

import torch

from classifier_lens.runner.types import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_device(key: str, name: object) -> torch.device:
    """The device that is named; `auto` is the first GPU if there is one, otherwise the CPU.

    key: configuration key for errors. Raises UserError for a device that this machine does not have.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    available = ["cpu", *(["cuda", *(f"cuda:{i}" for i in range(gpus))] if gpus else [])]
    if name not in available:
        gpu_count = f"PyTorch sees {gpus} CUDA GPU{'s' * (gpus != 1)}"
        raise UserError(f"{key}={name}: allowed on this machine are auto, {', '.join(available)} ({gpu_count})")
    return torch.device(str(name))


def parse_dtype(key: str, name: object) -> torch.dtype:
    """The floating-point type that is named. Raises UserError for a name that is not in `DTYPES`."""
    if name not in DTYPES:
        raise UserError(f"{key}={name}: allowed are {', '.join(DTYPES)}")
    return DTYPES[str(name)]
