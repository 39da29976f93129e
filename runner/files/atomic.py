"""Durable files, from which a run can continue: a file appears whole or not at all and survives a power cut.
A file that was damaged nevertheless, by a disk or by hand, is renamed and written again."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from itertools import count
from pathlib import Path

from classifier_lens.runner.types import UserError

DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)
# Raised by file systems that cannot synchronize a folder: there is nothing more to do.
NO_FOLDER_SYNC_ERRORS = (errno.EINVAL, errno.ENOTSUP)

# Raised for bad blocks of a disk, for cycles of links, and for anything but a plain file.
UNREADABLE_ERRORS = (errno.EIO, errno.ELOOP, errno.ENXIO)


Content = bytes | str | Iterable[str]  # of a file, in one piece or in parts


class UnwritableError(UserError):
    """A file or folder cannot be written; the message is one line with its name and the reason."""


class DamagedFileError(Exception):
    """A file or folder does not have the content that was written; the message says what is wrong."""


def write_durable(path: Path, content: Content) -> None:
    """Write a file and its folders durably: other processes, and readers after a power cut, see the old file or the new
    one, never a part. Raises UnwritableError; the old file then remains."""
    write_atomic(path, content)
    with wrap_write_errors(path):
        _synchronize(path.parent)


def write_atomic(path: Path, content: Content) -> None:
    """As `write_durable`, but after a power cut the old file may reappear: for files that can be written again, or that
    a later file completes."""
    parts = [content] if isinstance(content, (bytes, str)) else content
    with wrap_write_errors(path):
        _make_folders(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.writelines(part.encode() if isinstance(part, str) else part for part in parts)
                file.flush()
                os.fsync(file.fileno())
            if path.is_dir():
                quarantine(path, "is a folder")
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def read(path: Path) -> bytes:
    """The content of a file. Raises FileNotFoundError, DamagedFileError if it is not a plain file or the disk cannot
    read it, and UserError if this user may not read it."""
    with _reading(path), open_regular_file(path) as file:
        return file.read()


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, read one at a time. Raises as `read` does, at the first line."""
    with _reading(path), open_regular_file(path) as file:
        yield from file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except NotADirectoryError as error:  # a parent is a file
        raise FileNotFoundError(path) from error
    except IsADirectoryError as error:
        raise DamagedFileError("is a folder") from error
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except OSError as error:
        if error.errno not in UNREADABLE_ERRORS:
            raise
        raise DamagedFileError(f"cannot be read: {error.strerror}") from error


def open_regular_file(path: Path) -> BufferedReader:
    """A plain file, opened for reading. Raises OSError, also for a pipe or a device, which may never end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.ENXIO, "Is not a plain file")


def try_read_text(path: Path) -> str | None:
    """The text of a file, None if it is absent or cannot be read."""
    try:
        return read(path).decode()
    except (FileNotFoundError, DamagedFileError, UnicodeDecodeError):
        return None


def quarantine(path: Path, reason: object) -> None:
    """Rename a damaged file, so that it can be written again, and print a line; does nothing if another process has
    renamed it. Raises UnwritableError."""
    aside = next(p for i in count(1) if not os.path.lexists(p := path.with_name(f"{path.name}.damaged{_nth(i)}")))
    with wrap_write_errors(path), suppress(FileNotFoundError):
        os.rename(path, aside)
        _synchronize(path.parent)
        print(f"{path}: {reason}; renamed to {aside.name} and written again", file=sys.stderr, flush=True)


def _nth(i: int) -> str:
    return "" if i == 1 else f"-{i}"


def remove(path: Path) -> None:
    """Remove a file if it exists. Raises UnwritableError."""
    with wrap_write_errors(path):
        path.unlink(missing_ok=True)


def remove_temporary_files(folder: Path, name: str = "") -> None:
    """Remove the temporary files that killed processes left for the files of a folder, or for one file. No other
    process may be writing them."""
    for temporary in folder.glob(f".{name}*.{'[0-9a-f]' * 8}.tmp"):  # named by `write_atomic`
        if not temporary.is_dir():
            remove(temporary)


def make_folder(path: Path) -> None:
    """Create a folder and its parents durably. Raises UnwritableError."""
    with wrap_write_errors(path):
        _make_folders(path)


def check_writable(folder: Path) -> None:
    """Raise UnwritableError if no file can be created in a folder, which need not exist yet. Leaves no file behind."""
    with wrap_write_errors(folder):
        existing = folder
        while not _exists(existing) and existing != existing.parent:
            existing = existing.parent
        probe = existing / f".{secrets.token_hex(4)}.tmp"
        try:
            with open(probe, "xb") as file:
                file.write(b"0")
        finally:
            with suppress(OSError):
                probe.unlink()


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError within into an UnwritableError, whose one line names `path`."""
    try:
        yield
    except OSError as error:
        raise UnwritableError(_write_error_message(path, error)) from error


def _write_error_message(path: Path, error: OSError) -> str:
    if error.errno in DISK_FULL_ERRORS:
        return f"disk full: {path}"
    if error.errno == errno.EFBIG:
        return f"{path}: is larger than the limit for files; raise the limit (`ulimit -f`)"
    return f"{path}: cannot be written: {error.strerror or error}"


def _make_folders(folder: Path) -> None:
    if folder.is_dir() or folder == folder.parent:
        return
    _make_folders(folder.parent)
    with suppress(FileExistsError):  # created by another process; if it is a file, the next write fails
        folder.mkdir()
    _synchronize(folder.parent)


def _synchronize(folder: Path) -> None:
    """Make the entries of a folder durable, which record that a file was renamed."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC_ERRORS:
            raise
    finally:
        os.close(handle)
