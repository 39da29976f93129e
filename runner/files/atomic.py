"""Files that a run can be continued from: a file appears whole or not at all, and a power cut does not take it back.
What is damaged nevertheless, by a disk or by hand, is set aside and made again."""

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
# What file systems answer that cannot synchronize a folder: there is nothing more to do then.
NO_FOLDER_SYNC_ERRORS = (errno.EINVAL, errno.ENOTSUP)

# Of a disk with bad blocks, of links that lead nowhere, and of what is no plain file.
UNREADABLE_ERRORS = (errno.EIO, errno.ELOOP, errno.ENXIO)


Content = bytes | str | Iterable[str]  # of a file, in one piece or in several


class UnwritableError(UserError):
    """A file or folder that cannot be written; the message is one line that names it and the reason."""


class DamagedFileError(Exception):
    """A file or folder is not what was written; the message says in what way."""


def write_durable(path: Path, content: Content) -> None:
    """Write a file with its folders: other processes see the old file or the new one, and so does who comes after a
    power cut. Raises UnwritableError; the old file stays then."""
    write_atomic(path, content)
    with wrap_write_errors(path):
        _synchronize(path.parent)


def write_atomic(path: Path, content: Content) -> None:
    """As `write`, but after a power cut the old file may be seen until something else is written to the folder: for
    files that another one completes, or that are made again."""
    parts = [content] if isinstance(content, (bytes, str)) else content
    with wrap_write_errors(path):
        _make(path.parent)
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
    """A file's content. Raises FileNotFoundError, DamagedFileError where something else has its name or the disk
    lost it, and UserError where this user may not read it."""
    with _reading(path), open_regular_file(path) as file:
        return file.read()


def read_lines(path: Path) -> Iterator[bytes]:
    """A file's lines, one after the other, without holding all of them. Raises as `read` does, when they are asked
    for."""
    with _reading(path), open_regular_file(path) as file:
        yield from file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except NotADirectoryError as error:  # of those above it
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
    """A plain file, opened to be read. Raises OSError, for a pipe or a device as well, which may never end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.ENXIO, "Is no plain file")


def try_read_text(path: Path) -> str | None:
    """A file's text, None where there is none that can be read."""
    try:
        return read(path).decode()
    except (FileNotFoundError, DamagedFileError, UnicodeDecodeError):
        return None


def quarantine(path: Path, reason: object) -> None:
    """Rename what is damaged, so that it can be made again, and say so in a line; where another process was faster,
    nothing is left to do. Raises UnwritableError."""
    aside = next(p for i in count(1) if not os.path.lexists(p := path.with_name(f"{path.name}.damaged{_nth(i)}")))
    with wrap_write_errors(path), suppress(FileNotFoundError):
        os.rename(path, aside)
        _synchronize(path.parent)
        print(f"{path}: {reason}; set aside as {aside.name} and made again", file=sys.stderr, flush=True)


def _nth(i: int) -> str:
    return "" if i == 1 else f"-{i}"


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises UnwritableError."""
    with wrap_write_errors(path):
        path.unlink(missing_ok=True)


def remove_temporary_files(folder: Path, name: str = "") -> None:
    """Remove what killed processes left of a folder's files, or of one; nobody else may be writing them."""
    for temporary in folder.glob(f".{name}*.{'[0-9a-f]' * 8}.tmp"):  # as `write_atomic` calls them
        if not temporary.is_dir():
            remove(temporary)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, lasting as `write` does. Raises UnwritableError."""
    with wrap_write_errors(path):
        _make(path)


def check_writable(folder: Path) -> None:
    """Raises UnwritableError where a folder, which need not be there yet, takes no files. Leaves nothing behind."""
    with wrap_write_errors(folder):
        there = folder
        while not _is_there(there) and there != there.parent:
            there = there.parent
        probe = there / f".{secrets.token_hex(4)}.tmp"
        try:
            with open(probe, "xb") as file:
                file.write(b"0")
        finally:
            with suppress(OSError):
                probe.unlink()


def _is_there(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors within into UnwritableError, one line that names `path`."""
    try:
        yield
    except OSError as error:
        raise UnwritableError(_refusal(path, error)) from error


def _refusal(path: Path, error: OSError) -> str:
    if error.errno in DISK_FULL_ERRORS:
        return f"disk full: {path}"
    if error.errno == errno.EFBIG:
        return f"{path}: is larger than files may be here; raise the limit (`ulimit -f`)"
    return f"{path}: cannot be written: {error.strerror or error}"


def _make(folder: Path) -> None:
    if folder.is_dir() or folder == folder.parent:
        return
    _make(folder.parent)
    with suppress(FileExistsError):  # another process was faster; a file in its place is told by what is written next
        folder.mkdir()
    _synchronize(folder.parent)


def _synchronize(folder: Path) -> None:
    """Make lasting which files a folder holds: that a file was renamed is kept in its folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC_ERRORS:
            raise
    finally:
        os.close(handle)
