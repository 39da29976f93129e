"""The cache of tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from classifier_lens.models.tensor_cache import TensorCache
from tests.durability import damage

ROWS = {"latent": torch.arange(6.0).view(2, 3), "step": torch.arange(2)}


@pytest.fixture
def cache(tmp_path: Path) -> TensorCache:
    cache = TensorCache(str(tmp_path))
    cache.save(["a", "b"], **ROWS)
    return cache


def test_rows_are_stacked_in_the_order_of_the_keys(cache: TensorCache) -> None:
    result = cache.load(["b", "a"])
    assert result is not None and list(result) == list(ROWS)
    assert all(torch.equal(result[name], values.flip(0)) for name, values in ROWS.items())
    assert cache.load(["a", "c"]) is None
    assert TensorCache(None).load(["a"]) is None


@pytest.mark.parametrize("harm", damage.OF_TENSORS)
def test_a_damaged_row_is_renamed_and_missing(
    cache: TensorCache, tmp_path: Path, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    harm(tmp_path / "a.safetensors")
    assert cache.load(["a", "b"]) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'a.safetensors'}: ") and line.endswith(
        "; renamed to a.safetensors.damaged and written again"
    )
    assert cache.load(["a", "b"]) is None and capsys.readouterr().err == ""
    cache.save(["a", "b"], **ROWS)
    result = cache.load(["a", "b"])
    assert result is not None and torch.equal(result["latent"], ROWS["latent"])


def test_a_row_of_another_key_is_missing(
    cache: TensorCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage.from_neighbour(tmp_path / "b.safetensors")(tmp_path / "a.safetensors")
    assert cache.load(["a"]) is None
    assert "belongs to another key" in capsys.readouterr().err
