"""A file is there whole and lasts, or is not there, and a folder that refuses it is told in one line."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from classifier_lens.runner.files.atomic import (
    DamagedFileError,
    UnwritableError,
    make_folder,
    read,
    remove_temporary_files,
    write_atomic,
    write_durable,
)
from classifier_lens.runner.files.text import read_lines
from classifier_lens.runner.types import UserError
from tests.durability import damage


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synchronized and renamed, in its order; temporary names cut."""
    seen: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        seen.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name.rpartition('.tmp')[1] or 'folder'}")
        sync(handle)

    def replaced(source: Any, target: Any) -> None:
        seen.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return seen


def test_a_file_is_on_the_disk_before_it_is_renamed_and_its_name_afterwards(tmp_path: Path, calls: list[str]) -> None:
    write_durable(tmp_path / "a", "text")
    assert calls == ["sync .tmp", "rename", "sync folder"]
    calls.clear()
    write_atomic(tmp_path / "b", "text")
    assert calls == ["sync .tmp", "rename"], "its name lasts with the next file that is written there"


def test_the_folders_that_a_file_needs_last_too(tmp_path: Path, calls: list[str]) -> None:
    write_durable(tmp_path / "x" / "y" / "a", b"bytes")
    assert calls == ["sync folder", "sync folder", "sync .tmp", "rename", "sync folder"]
    calls.clear()
    make_folder(tmp_path / "x" / "y")
    assert calls == [], "they were there"


def test_a_file_system_that_cannot_synchronize_folders_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refusing(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", refusing)
    write_durable(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize(
    ("code", "line"),
    [
        (errno.ENOSPC, "disk full: {}"), (errno.EDQUOT, "disk full: {}"),
        (errno.EFBIG, "{}: is larger than the limit for files; raise the limit (`ulimit -f`)"),
        (errno.EIO, "{}: cannot be written: Input/output error"),
    ],
)  # fmt: skip
def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, line: str
) -> None:
    write_durable(tmp_path / "a", "old")

    def refuse(*given: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(UnwritableError) as raised:
        write_durable(tmp_path / "a", "new")
    assert str(raised.value) == line.format(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"], "no temporary file is left"


def test_a_signal_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_durable(tmp_path / "a", "new")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of at most 1 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_limit_on_files_is_told(tmp_path: Path, small_files: None) -> None:
    write_durable(tmp_path / "a", b"x" * 1000)
    with pytest.raises(UnwritableError, match="ulimit -f"):
        write_durable(tmp_path / "b", b"x" * 2000)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "x" / "a"):
        with pytest.raises(UnwritableError, match="Not a directory"):
            write_durable(path, "text")


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_durable(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    for name in (".a.png.12345678.tmp", ".b.png.12345678.tmp", "a.png", ".lock"):
        (tmp_path / name).touch()
    remove_temporary_files(tmp_path, "a.png")
    assert {path.name for path in tmp_path.iterdir()} == {".b.png.12345678.tmp", "a.png", ".lock"}
    remove_temporary_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", ".lock"}
    remove_temporary_files(tmp_path / "nowhere")


@pytest.mark.parametrize("harm", [damage.pipe, damage.endless, damage.folder, damage.loop])
def test_what_is_no_plain_file_is_never_waited_for(harm: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    harm(path)
    with pytest.raises(DamagedFileError):
        read(path)
    with pytest.raises(UserError, match="expected a list"):
        read_lines(f"classifier.labels={path}", path, "a list")
