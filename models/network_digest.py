"""Digests of networks: what identifies their weights in run folders and caches."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def network_digest(network: Any) -> str:
    """SHA-256 of the names, types and bytes of a module's weights.

    A plain function has no weights that can be read; its digest is that of its source file, or of its byte code if it
    has none, as in a notebook.
    """
    digest = hashlib.sha256()
    if isinstance(network, nn.Module):
        for key, value in sorted(network.state_dict().items()):
            for part in _entry_bytes(key, value):
                digest.update(part)
        return digest.hexdigest()
    code = network if inspect.isroutine(network) else type(network)
    digest.update(f"{code.__module__}:{code.__qualname__}".encode())
    compiled = getattr(code, "__code__", None)
    source = Path(compiled.co_filename if compiled else getattr(sys.modules[code.__module__], "__file__", None) or "")
    if source.is_file():
        digest.update(source.read_bytes())
    elif compiled:
        digest.update(compiled.co_code)
    return digest.hexdigest()


def _entry_bytes(key: str, value: Any) -> Iterator[bytes | memoryview]:
    """The bytes of one entry of a state dict: a tensor, or the values that quantized layers and layers with an extra
    state store there."""
    if isinstance(value, (tuple, list)):
        for i, element in enumerate(value):
            yield from _entry_bytes(f"{key}.{i}", element)
    elif isinstance(value, Tensor):
        yield f"{key} {value.dtype} {tuple(value.shape)}".encode()
        plain = value.detach().dequantize() if value.is_quantized else value.detach()
        yield plain.cpu().contiguous().flatten().view(torch.uint8).numpy().data
    elif value is None or isinstance(value, (str, bytes, int, float, torch.dtype)):
        yield f"{key} {value!r}".encode()


def joint_digest(networks: Sequence[Any], *settings: object) -> str:
    """SHA-256 of the weights of several networks and of the settings that affect their outputs."""
    parts = [*map(network_digest, networks), *map(str, settings)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
