"""Tensors in a safetensors file that carries its own digest: one that was cut, exchanged or edited is told."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from classifier_lens.runner.files.atomic import DamagedFileError, read, write_durable

DIGEST_PLACEHOLDER = "0" * 64  # stands in the digest's place while it is computed
DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')


@dataclass(frozen=True)
class TensorFile:
    """What such a file holds: tensors by name, on the CPU, in the order in which they were given, and texts by name."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **texts: str) -> None:
    """Write tensors and texts so that they last. Raises UnwritableError."""
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    data = serialise(whole, metadata={**texts, "names": json.dumps(list(whole)), "sha256": DIGEST_PLACEHOLDER})
    start, end = _place(data)
    write_durable(path, data[:start] + _digest(data, start, end).encode() + data[end:])


def read_tensors(path: Path) -> TensorFile:
    """Read what `write_tensors` has written, bit for bit; tensors are copied, since kernels may round by how memory is
    aligned. Raises FileNotFoundError, and DamagedFileError for any other content."""
    data = read(path)
    start, end = _place(data)
    if data[start:end].decode() != _digest(data, start, end):
        raise DamagedFileError("its content is not what was written")
    length = int.from_bytes(data[:8], "little")
    texts: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors, names = parse(data), json.loads(texts["names"])
    return TensorFile({name: tensors[name].clone() for name in names}, texts)


def _place(data: bytes) -> tuple[int, int]:
    """Where the digest stands. Raises DamagedFileError if there is none."""
    if not data:
        raise DamagedFileError("is empty")
    if (found := DIGEST.search(data)) is None:
        raise DamagedFileError("is no file of tensors with a digest")
    return found.span(1)


def _digest(data: bytes, start: int, end: int) -> str:
    """Of the whole file, with the place of the digest itself empty."""
    sha, view = hashlib.sha256(), memoryview(data)
    for part in (view[:start], DIGEST_PLACEHOLDER.encode(), view[end:]):
        sha.update(part)
    return sha.hexdigest()
