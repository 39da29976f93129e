"""No run fails by its console: closed streams, readers that have ended, full disks, letters that an encoding lacks."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from classifier_lens.runner.logging.console import resilient_streams


@contextmanager
def replaced(descriptor: int, by: int | None) -> Iterator[None]:
    """Another file, or none, in a descriptor's place."""
    kept = os.dup(descriptor)
    try:
        os.close(descriptor) if by is None else os.dup2(by, descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


def test_a_reader_that_has_ended_and_a_full_disk() -> None:
    ended, pipe = os.pipe()
    os.close(ended)
    for broken in (pipe, os.open("/dev/full", os.O_WRONLY)):
        for stream, descriptor in (("stdout", 1), ("stderr", 2)):
            with replaced(descriptor, broken), resilient_streams():
                for _ in range(2):
                    print("x" * 10_000, file=getattr(sys, stream), flush=True)
        os.close(broken)


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_closed_stream_is_no_other_file(descriptor: int, tmp_path: Path) -> None:
    with replaced(descriptor, None):
        with resilient_streams():
            (tmp_path / "x").write_text("own")
            with open(tmp_path / "x") as file:
                assert file.fileno() > 2
                print("printed", flush=True)
                print("printed", file=sys.stderr, flush=True)
            assert (tmp_path / "x").read_text() == "own"
        with suppress(OSError):
            os.close(descriptor)


def test_letters_that_an_encoding_lacks_are_written_as_their_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with open(tmp_path / "log", "wb") as log, replaced(1, log.fileno()), resilient_streams():
        print("Füchse 猫")
    assert (tmp_path / "log").read_text() == "F\\xfcchse \\u732b\n"
