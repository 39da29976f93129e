"""Source files of the user's code."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from classifier_lens.runner.user_code import source_files


def test_modules_of_the_same_package_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {
        "somepackage/__init__.py": "", "somepackage/nets.py": "from .parts import a\nfrom somepackage.deep import b\n",
        "somepackage/parts/__init__.py": "", "somepackage/parts/a.py": "import torch\n",
        "somepackage/deep.py": "def b():\n    from . import late\n", "somepackage/late.py": "", "somepackage/no.py": "",
        "outside.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    importlib.import_module("somepackage.nets")
    result = {str(file.relative_to(tmp_path.resolve())) for file in source_files("somepackage.nets:load")}
    assert result == set(files) - {"somepackage/no.py", "outside.py"}
    assert [file.name for file in source_files("torchvision:x")] in ([], ["__init__.py"])


def test_files_that_cannot_be_parsed_import_nothing(tmp_path: Path) -> None:
    """A compiled module, and one for another version of Python in a branch that is never taken."""
    (tmp_path / "net.py").write_text("def load():\n    import old, fast\n")
    (tmp_path / "old.py").write_text("print 'Python 2'\n")
    (tmp_path / "fast.py").write_bytes(b"\x7fELF\0\0")
    assert [file.name for file in source_files(f"{tmp_path / 'net.py'}:load")] == ["fast.py", "net.py", "old.py"]


def test_of_an_installed_package_only_its_file_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "dist-packages"
    folder.mkdir()
    (folder / "net.py").write_text("import other\n")
    (folder / "other.py").write_text("")
    assert [file.name for file in source_files(f"{folder / 'net.py'}:load")] == ["net.py"]
