"""A cache of tensors on disk, one file per row; damaged files are treated as missing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from classifier_lens.runner.files.atomic import DamagedFileError, quarantine
from classifier_lens.runner.files.tensors import read_tensors, write_tensors


class TensorCache:
    """A folder of safetensors files named by the hash of everything that their content depends on.

    Args:
        folder: None disables the cache.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def key(self, *parts: object) -> str:
        """The hash of everything that the content depends on: tensors by their bytes, other values by their `repr`."""
        sha = hashlib.sha256()
        for part in parts:
            data = (
                part.detach().cpu().contiguous().numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode()
            )
            sha.update(len(data).to_bytes(8, "big") + data)
        return sha.hexdigest()[:32]

    def load(self, keys: Sequence[str]) -> dict[str, Tensor] | None:
        """The stacked tensors of all keys, or None if one of them is missing or damaged."""
        if self.folder is None:
            return None
        rows = [self._load_row(self.folder / f"{key}.safetensors", key) for key in keys]
        cached = [row for row in rows if row is not None]
        if len(cached) < len(keys):
            return None
        return {name: torch.stack([row[name] for row in cached]) for name in cached[0]}

    def _load_row(self, path: Path, key: str) -> dict[str, Tensor] | None:
        """The tensors of a file, None if it is missing, damaged or of another key; the last two are renamed."""
        try:
            file = read_tensors(path)
            if file.metadata.get("key") != key:
                raise DamagedFileError("belongs to another key")
        except FileNotFoundError:
            return None
        except DamagedFileError as error:
            quarantine(path, error)
            return None
        return file.tensors

    def save(self, keys: Sequence[str], **tensors: Tensor) -> None:
        """Store row i of each tensor under keys[i]."""
        if self.folder is None:
            return
        for i, key in enumerate(keys):
            path = self.folder / f"{key}.safetensors"
            write_tensors(path, {name: values[i] for name, values in tensors.items()}, key=key)
