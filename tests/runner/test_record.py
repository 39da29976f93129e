"""What a run leaves behind is whole, ordered, and found again under the same name."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.record import RunFolder, read_png, run_key, to_json, write, write_png

CONFIG: dict[str, Any] = {
    "seed": 0, "limit": 4, "shard": {"index": 0, "count": 1}, "checkpoint": {"every": 5}, "device": "auto",
    "outputs": "outputs", "logger": {"mode": "offline"}, "command": "python run.py", "batch": 4,
    "generator": {
        "steps": 20, "device": "auto", "cache": {"_target_": "models.inversion_cache.InversionCache", "folder": "a"},
    },
    "optimizer": {"lr": {"text": 0.01}},
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"limit": None}, {"shard": {"index": 1, "count": 2}}, {"checkpoint": {"every": 1}}, {"logger": {}},
        {"device": "cpu", "generator": CONFIG["generator"] | {"device": "cpu"}}, {"command": "python run.py limit=1"},
        {"outputs": "x", "generator": CONFIG["generator"] | {"cache": CONFIG["generator"]["cache"] | {"folder": "x"}}},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_does_not_change_a_result_is_no_part_of_the_key(change: dict[str, Any]) -> None:
    assert run_key(CONFIG | change, ["w"]) == run_key(CONFIG, ["w"])


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"batch": 8}, {"optimizer": {"lr": {"text": 0.02}}}, {"generator": {"steps": 10}}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_changes_a_result_is(change: dict[str, Any]) -> None:
    assert run_key(CONFIG | change, ["w"]) != run_key(CONFIG, ["w"])


def test_the_weights_are_part_of_the_key_and_the_order_of_keys_is_not() -> None:
    assert run_key(CONFIG, ["v"]) != run_key(CONFIG, ["w"])
    assert run_key(dict(reversed(CONFIG.items())), ["w"]) == run_key(CONFIG, ["w"])


def test_pictures_come_back_within_half_a_level(tmp_path: Path) -> None:
    picture = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    write_png(tmp_path / "a.png", picture)
    assert (read_png(tmp_path / "a.png") - picture).abs().max() <= 0.5 / 255 + 1e-6
    write_png(tmp_path / "b.png", torch.tensor([[[-1.0, 0.0, 1.0, 2.0]]]))
    assert read_png(tmp_path / "b.png").tolist() == [[[0.0, 0.0, 1.0, 1.0]]] * 3


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", "old")

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


def test_numbers_that_json_lacks_become_null() -> None:
    value = {"a": [1.5, math.nan], "b": (math.inf, 2, "x"), "c": None}
    assert to_json(value) == {"a": [1.5, None], "b": [None, 2, "x"], "c": None}


def test_results_stand_in_problem_order_and_the_status_counts_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for name in ("c", "a"):  # finished in another order than they stand in
        folder.write_result(name, {"name": name, "confidence": math.nan})
    folder.write_failure("b", "step 3: the term x is not finite")
    status = folder.collect(["a", "b", "c", "d"], "running", "")
    lines = [json.loads(line) for line in (folder.path / "results.jsonl").read_text().splitlines()]
    assert lines == [{"name": "a", "confidence": None}, {"name": "c", "confidence": None}]
    assert status == json.loads((folder.path / "status.json").read_text())
    assert (status["done"], status["failed"], status["pending"], status["state"]) == (2, 1, 1, "running")
    assert status["failures"] == [{"name": "b", "error": "step 3: the term x is not finite"}]
    assert [folder.done(name) for name in "abcd"] == [True, True, True, False]
    assert not list(folder.path.rglob("*.tmp"))


def test_the_first_command_stays_in_the_configuration(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config({"command": "first", "limit": None})
    folder.write_config({"command": "second", "limit": 4})
    assert "first" in (tmp_path / "config.yaml").read_text()
