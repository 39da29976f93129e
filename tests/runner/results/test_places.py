"""Where nothing can be written is told before anything is loaded; what is finished there can still be shown."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from classifier_lens.runner import run
from classifier_lens.runner.files.atomic import UnwritableError
from classifier_lens.runner.results.run_folder import RunFolder
from classifier_lens.runner.run import check_output_folders
from classifier_lens.runner.types import UserError
from tests.durability import damage

NAME = "uvce/a-b"


def config(outputs: Path, cache: Path | None = None, **changes: Any) -> dict[str, Any]:
    folder = None if cache is None else str(cache)
    return {"outputs": str(outputs), "name": NAME, "cache": {"folder": folder}, "seed": 0, **changes}


@pytest.mark.parametrize("inner", ["", NAME.split("/")[0], NAME])
def test_a_file_in_a_folders_place_is_told(tmp_path: Path, inner: str) -> None:
    outputs = tmp_path / "outputs"
    (outputs / inner).parent.mkdir(parents=True, exist_ok=True)
    (outputs / inner).touch()
    with pytest.raises(UserError) as raised:
        check_output_folders(config(outputs))
    line = f"outputs={outputs}: {outputs / NAME}: cannot be written: Not a directory; choose a writable folder"
    assert str(raised.value) == line


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ("/proc/outputs", "No such file or directory"), ("loop", "Too many levels of symbolic links"),
        ("nowhere", "No such file or directory"), ("x" * 300, "File name too long"),
    ],
)  # fmt: skip
def test_a_place_that_takes_no_files_is_told(tmp_path: Path, outputs: str, reason: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "folder")
    with pytest.raises(UserError, match=f"{reason}; choose a writable folder$"):
        check_output_folders(config(tmp_path / outputs))


@pytest.mark.parametrize(("code", "message"), [(errno.ENOSPC, "disk full: "), (errno.EFBIG, "ulimit -f")])
def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str) -> None:
    def full(*given: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(UserError, match=message):
        check_output_folders(config(tmp_path))


def test_the_cache_is_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^cache.folder={tmp_path / 'file'}: "):
        check_output_folders(config(tmp_path, tmp_path / "file"))


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    check_output_folders(config(tmp_path / "new", tmp_path / "new" / "cache"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that is done, in a place that cannot be written any more."""
    folder = RunFolder(tmp_path / NAME / "key")
    folder.write_config(config(tmp_path))
    folder.collect([], "done", "", lambda records: {})

    def refuse(folder: Path) -> None:
        raise UnwritableError(f"{folder}: cannot be written: Read-only file system")

    monkeypatch.setattr(run, "check_writable", refuse)
    return folder


def test_what_is_finished_there_may_be_shown(finished: RunFolder, tmp_path: Path) -> None:
    check_output_folders(config(tmp_path, tmp_path / "cache"))
    with pytest.raises(UserError, match="Read-only file system"):
        check_output_folders(config(tmp_path, tmp_path / "cache", seed=1))


@pytest.mark.parametrize("file", ["config.yaml", "status.json"])
@pytest.mark.parametrize("harm", [h for h in damage.ANY if h not in (damage.lengthened, damage.flipped)])
def test_what_is_damaged_is_not_finished(finished: RunFolder, tmp_path: Path, file: str, harm: damage.Harm) -> None:
    harm(finished.path / file)
    with pytest.raises(UserError, match="Read-only file system"):
        check_output_folders(config(tmp_path))
