"""Digests of the content of data sets, files and images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.types import Example, UnreadableImageError


def hash_values(*parts: object) -> str:
    """SHA-256 of values by their `repr`."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


# Up to this number and size, files are read for a digest, which takes a tenth of a second from a local disk; for larger
# sets the digest covers sizes and modification times.
MAX_HASHED_FILES, MAX_HASHED_BYTES = 2_000, 64 * 2**20


def hash_files(files: Sequence[Path]) -> str:
    """SHA-256 of the contents of files, in their order and without their names; for large sets (see `MAX_HASHED_BYTES`)
    of sizes and modification times. Raises OSError for a file that cannot be read."""
    stats = [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, files)]
    if len(files) > MAX_HASHED_FILES or sum(size for size, _ in stats) > MAX_HASHED_BYTES:
        return hash_values("sizes and times", stats)
    return hash_values("contents", [hash_file(file) for file in files])


def hash_file(file: Path) -> str:
    """SHA-256 of the content of a file. Raises OSError if it cannot be read."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def hash_image(image: Float[Tensor, "c h w"]) -> str:
    """SHA-256 of the shape and the 8-bit values of an image in [0, 1]."""
    pixels = (image.detach() * 255).round().clamp(0, 255).byte().cpu().contiguous()
    return hash_values(tuple(image.shape), hashlib.sha256(pixels.numpy().tobytes()).hexdigest())


def hash_example(example: Example) -> str:
    """The digest of the origin of an example's image, such as its file, so that it need not be decoded; without an
    origin, of its pixels. Raises UnreadableImageError."""
    if isinstance(example.origin, Path):
        try:
            return hash_file(example.origin)
        except OSError as error:
            raise UnreadableImageError(f"data.path={example.origin}: cannot be read ({error.strerror})") from error
    return hash_image(example.image) if example.origin is None else hash_values(example.origin)


class HashedFiles:
    """Files on which the results of a run depend."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = list(files)

    @property
    def digest(self) -> str:
        """Digest of their contents. Raises OSError if one cannot be read."""
        return hash_files(self._files)
