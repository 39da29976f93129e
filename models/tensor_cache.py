"""Tensors kept by content, one file per row, written atomically."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from runner.files import write


class TensorCache:
    """A folder of safetensors files named by the hash of all that their content depends on; None keeps nothing."""

    def __init__(self, folder: str | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def key(self, *parts: object) -> str:
        """The hash of everything that decides the content: tensors by their bytes, anything else by its `repr`."""
        sha = hashlib.sha256()
        for part in parts:
            data = (
                part.detach().cpu().contiguous().numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode()
            )
            sha.update(len(data).to_bytes(8, "big") + data)
        return sha.hexdigest()[:32]

    def load(self, keys: Sequence[str]) -> dict[str, Tensor] | None:
        """The stacked tensors of all keys, or None if one of them is missing."""
        if self.folder is None:
            return None
        paths = [self.folder / f"{key}.safetensors" for key in keys]
        if not all(path.exists() for path in paths):
            return None
        parts = [load_file(path) for path in paths]
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def save(self, keys: Sequence[str], **tensors: Tensor) -> None:
        """Keep row i of each tensor under keys[i]."""
        if self.folder is None:
            return
        for i, key in enumerate(keys):
            path = self.folder / f"{key}.safetensors"
            write(path, serialise({name: t[i].detach().cpu().contiguous().clone() for name, t in tensors.items()}))
