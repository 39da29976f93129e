"""Console streams that cannot make a run fail: its results are in its folder, whether the console is read or not."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _ResilientFile(io.FileIO):
    """A descriptor that is redirected to the null device after the first failed write: its reader has ended
    (`| head`), or the disk of its log file is full."""

    def write(self, data, /):  # type: ignore[no-untyped-def]
        try:
            return super().write(data)
        except OSError:
            redirect_to_devnull(self.fileno())
            return len(data)


def redirect_to_devnull(descriptor: int) -> None:
    """Redirect a descriptor to the null device."""
    devnull = os.open(os.devnull, os.O_RDWR)
    if devnull != descriptor:
        os.dup2(devnull, descriptor)
        os.close(devnull)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextmanager
def resilient_streams() -> Iterator[None]:
    """Replace the standard streams by resilient ones within. Characters that their encoding lacks are escaped. A closed
    stream (`>&-`) is redirected to the null device; otherwise the next opened file would take its descriptor."""
    before = sys.stdout, sys.stderr
    for descriptor in (0, 1, 2):
        if not _is_open(descriptor):
            redirect_to_devnull(descriptor)
    sys.stdout, sys.stderr = (_stream(i, stream) for i, stream in enumerate(before, start=1))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _stream(descriptor: int, stream: TextIO | None) -> io.TextIOWrapper:
    """A line-buffered text stream on a descriptor, in the encoding of the stream it replaces."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(_ResilientFile(descriptor, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)
