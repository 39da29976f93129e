"""Tensors in a safetensors file with its own digest, by which a truncated or edited file is recognized."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load as parse
from safetensors.torch import save as serialize
from torch import Tensor

from classifier_lens.runner.files.atomic import DamagedFileError, read, write_durable

DIGEST_PLACEHOLDER = "0" * 64  # the value of the digest field while the digest is computed
DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')


@dataclass(frozen=True)
class TensorFile:
    """The content of a file: tensors by name, on the CPU, in the order in which they were written; texts by name."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **texts: str) -> None:
    """Write tensors and texts durably. Raises UnwritableError."""
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    data = serialize(whole, metadata={**texts, "names": json.dumps(list(whole)), "sha256": DIGEST_PLACEHOLDER})
    start, end = _digest_position(data)
    write_durable(path, data[:start] + _digest(data, start, end).encode() + data[end:])


def read_tensors(path: Path) -> TensorFile:
    """The content of a file of `write_tensors`, bit for bit. Tensors are copied, since the rounding of kernels may
    depend on the alignment of memory. Raises FileNotFoundError, and DamagedFileError for any other content."""
    data = read(path)
    start, end = _digest_position(data)
    if data[start:end].decode() != _digest(data, start, end):
        raise DamagedFileError("its digest does not fit its content")
    length = int.from_bytes(data[:8], "little")
    texts: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors, names = parse(data), json.loads(texts["names"])
    return TensorFile({name: tensors[name].clone() for name in names}, texts)


def _digest_position(data: bytes) -> tuple[int, int]:
    """First and last position of the digest. Raises DamagedFileError if there is none."""
    if not data:
        raise DamagedFileError("is empty")
    if (match := DIGEST.search(data)) is None:
        raise DamagedFileError("is not a file of tensors with a digest")
    return match.span(1)


def _digest(data: bytes, start: int, end: int) -> str:
    """The digest of the whole file, in which the digest field has its placeholder."""
    sha, view = hashlib.sha256(), memoryview(data)
    for part in (view[:start], DIGEST_PLACEHOLDER.encode(), view[end:]):
        sha.update(part)
    return sha.hexdigest()
