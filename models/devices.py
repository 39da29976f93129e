"""The devices and number formats that networks may be put in, by the names that a configuration has for them."""

from __future__ import annotations

import torch

from classifier_lens.runner.types import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_device(key: str, name: object) -> torch.device:
    """The device of a name; `auto` is the first GPU where there is one, else the CPU.

    key: the configuration's, for errors. Raises UserError, with those that this machine has, for any other name.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    here = ["cpu", *(["cuda", *(f"cuda:{i}" for i in range(gpus))] if gpus else [])]
    if name not in here:
        seen = f"PyTorch sees {gpus} CUDA GPU{'s' * (gpus != 1)}"
        raise UserError(f"{key}={name}: allowed on this machine are auto, {', '.join(here)} ({seen})")
    return torch.device(str(name))


def parse_dtype(key: str, name: object) -> torch.dtype:
    """The number format of a name. Raises UserError for one that is not in `DTYPES`."""
    if name not in DTYPES:
        raise UserError(f"{key}={name}: allowed are {', '.join(DTYPES)}")
    return DTYPES[str(name)]
