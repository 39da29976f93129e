"""A saved state comes back bit for bit, and a file is whole or not there."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from classifier_lens.runner.files.atomic import DamagedFileError, UnwritableError
from classifier_lens.runner.optimization import checkpoint
from classifier_lens.runner.optimization.loop import InitialChoice, OptimizationState


def state() -> OptimizationState:
    draw = torch.Generator().manual_seed(0)
    controls = {name: torch.randn(2, 3, 4, generator=draw) for name in ("latent", "text")}
    return OptimizationState(
        controls=controls,
        best_controls={name: value + 1 for name, value in controls.items()},
        best_loss=torch.tensor([0.1, math.inf]),
        best_step=torch.tensor([3, 0]),
        failures=[None, "step 0: bad"],
        step=4,
        initial_choice=InitialChoice([0, 2], {"masks": torch.rand(2, 1, 4, 4, generator=draw)}),
        optimizer_state={"latent": {"step": torch.tensor(4.0), "exp_avg": torch.randn(2, 3, 4, generator=draw)}},
        history=[{"total": [0.1, math.nan]}, {"total": [0.1 + 0.2, math.nan]}],
        finished=False,
        seconds=1.25,
    )


def test_a_saved_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = state()
    checkpoint.save(tmp_path / "deep" / "state.safetensors", saved, {})
    result = checkpoint.load(tmp_path / "deep" / "state.safetensors", torch.device("cpu"), {}, 4)
    for name in ("controls", "best_controls"):
        mine, theirs = getattr(result, name), getattr(saved, name)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert result.optimizer_state.keys() == {"latent"}
    assert all(
        torch.equal(result.optimizer_state["latent"][key], saved.optimizer_state["latent"][key])
        for key in ("step", "exp_avg")
    )
    assert torch.equal(result.best_loss, saved.best_loss) and torch.equal(result.best_step, saved.best_step)
    assert (result.step, result.finished, result.failures, result.seconds) == (4, False, [None, "step 0: bad"], 1.25)
    assert (
        result.initial_choice is not None
        and saved.initial_choice is not None
        and result.initial_choice.precomputed.keys() == {"masks"}
    )
    assert torch.equal(result.initial_choice.precomputed["masks"], saved.initial_choice.precomputed["masks"])
    assert result.initial_choice.candidate_indices == saved.initial_choice.candidate_indices
    checkpoint.save(tmp_path / "none.safetensors", replace(saved, initial_choice=None), {})
    assert checkpoint.load(tmp_path / "none.safetensors", torch.device("cpu"), {}, 4).initial_choice is None
    assert result.history[1]["total"][0] == 0.1 + 0.2 and math.isnan(result.history[1]["total"][1])


def test_values_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    saved = state()
    saved.best_controls = saved.controls
    checkpoint.save(tmp_path / "state.safetensors", saved, {})
    result = checkpoint.load(tmp_path / "state.safetensors", torch.device("cpu"), {}, 4)
    result.controls["latent"].zero_()
    assert torch.equal(result.best_controls["latent"], saved.best_controls["latent"])


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, state(), {})
    before = path.read_bytes()

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnwritableError, match="disk full"):
        checkpoint.save(path, state(), {})
    assert path.read_bytes() == before


def test_a_resumed_state_has_its_controls_in_their_order(tmp_path: Path) -> None:
    """Sums over controls round by it."""
    saved = state()
    saved.controls = {name: torch.zeros(1) for name in ("text", "null", "z", "latent", "a", "shift")}
    checkpoint.save(tmp_path / "a", saved, {})
    assert list(checkpoint.load(tmp_path / "a", torch.device("cpu"), {}, 4).controls) == list(saved.controls)


@pytest.mark.parametrize(
    ("owner", "steps", "why"),
    [
        ({"key": "x", "problems": "a"}, 4, None),
        ({"key": "y", "problems": "a"}, 4, "belongs to another key"),
        ({"key": "x", "problems": "b"}, 4, "belongs to another problems"),
        ({"key": "x", "problems": "a"}, 3, "stands at step 4 of 3"),
    ],
)
def test_a_state_of_another_batch_is_not_taken(
    tmp_path: Path, owner: dict[str, str], steps: int, why: str | None
) -> None:
    checkpoint.save(tmp_path / "a", state(), {"key": "x", "problems": "a"})
    if why is None:
        assert checkpoint.load(tmp_path / "a", torch.device("cpu"), owner, steps).step == 4
    else:
        with pytest.raises(DamagedFileError, match=why):
            checkpoint.load(tmp_path / "a", torch.device("cpu"), owner, steps)
