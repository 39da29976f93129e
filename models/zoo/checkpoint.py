"""Weights from files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models.hub import NEEDS_NONE
from runner.types import UserError, first_line


def load_into(network: nn.Module, path: Path, key: str) -> None:
    """Load weights from a file; key: the key and value that errors point at.

    Raises UserError if the file is missing, unreadable or of another architecture.
    """
    if not path.is_file():
        raise UserError(f"{key}: no such file; give a .safetensors file or a torch.save'd state dict; {NEEDS_NONE}")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        network.load_state_dict(state.get("state_dict", state))
    except (SafetensorError, pickle.UnpicklingError, EOFError, IndexError, RuntimeError) as error:
        raise UserError(f"{key}: cannot be loaded: {first_line(error)}") from error
