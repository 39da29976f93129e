"""Tensors come back as they were given, or their file is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from classifier_lens.runner.files.atomic import DamagedFileError
from classifier_lens.runner.files.tensors import read_tensors, write_tensors
from tests.durability import damage

TENSORS = {
    "z": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), "a": torch.tensor(4.0),
    "half": torch.ones(2, 2, dtype=torch.bfloat16).T, "count": torch.arange(3), "none": torch.zeros(0, 2),
}  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "f", TENSORS, key="k", prompt='"sha256":"' + "1" * 64 + '"')
    file = read_tensors(tmp_path / "f")
    assert list(file.tensors) == list(TENSORS)
    assert all(torch.equal(file.tensors[name], value) for name, value in TENSORS.items())
    assert all(file.tensors[name].dtype == value.dtype for name, value in TENSORS.items())
    assert file.metadata["key"] == "k" and file.metadata["prompt"] == '"sha256":"' + "1" * 64 + '"'


@pytest.mark.parametrize("harm", damage.OF_TENSORS)
def test_what_is_damaged_is_refused(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    write_tensors(tmp_path / "f", TENSORS, key="k")
    harm(tmp_path / "f")
    with pytest.raises(DamagedFileError):
        read_tensors(tmp_path / "f")


def test_what_is_missing_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "f")
