"""The console's streams, by which no run fails: its results are in its folder, whoever reads the console."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _Lasting(io.FileIO):
    """A descriptor that leads nowhere from then on where it cannot be written any more: its reader has ended
    (`| head`), or the disk of its log file is full."""

    def write(self, data, /):  # type: ignore[no-untyped-def]
        try:
            return super().write(data)
        except OSError:
            redirect_to_devnull(self.fileno())
            return len(data)


def redirect_to_devnull(descriptor: int) -> None:
    """Let what is written to a descriptor, or read from it, be nothing."""
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextmanager
def resilient_streams() -> Iterator[None]:
    """Within, the standard streams are `_Lasting`; letters that their encoding lacks are written as their codes. One
    that is closed (`>&-`) leads nowhere: else the next file that is opened would get what is printed."""
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
    """A text stream as Python would open it."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    buffer = io.BufferedWriter(_Lasting(descriptor, "w", closefd=False))
    return io.TextIOWrapper(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)
