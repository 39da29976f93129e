"""Tensors kept by content, one file per row; a damaged one is computed again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from classifier_lens.runner.files.atomic import DamagedFileError, quarantine
from classifier_lens.runner.files.tensors import read_tensors, write_tensors


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
        """The stacked tensors of all keys, or None if one of them is missing or damaged."""
        if self.folder is None:
            return None
        parts = [self._row(self.folder / f"{key}.safetensors", key) for key in keys]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(keys):
            return None
        return {name: torch.stack([part[name] for part in whole]) for name in whole[0]}

    def _row(self, path: Path, key: str) -> dict[str, Tensor] | None:
        """The tensors of a file, None if it is missing; one that is damaged or of another key is set aside."""
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
        """Keep row i of each tensor under keys[i]."""
        if self.folder is None:
            return
        for i, key in enumerate(keys):
            path = self.folder / f"{key}.safetensors"
            write_tensors(path, {name: values[i] for name, values in tensors.items()}, key=key)
