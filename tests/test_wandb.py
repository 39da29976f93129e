"""Runs as Weights & Biases would see them, read back from what `wandb sync` would send."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.cli import Cli
from tests.wandb_file import OfflineRun, read_offline

STEPS = 3
LABELS = ["Original", "Initialization", "Counterfactual", "Absolute difference", "Editable region (white)"]


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)


def offline_runs(folder: Path) -> list[OfflineRun]:
    return sorted((read_offline(path) for path in folder.glob("wandb/offline-run-*")), key=lambda run: run.job_type)


def whole(run: OfflineRun, problems: int) -> None:
    """A row per evaluation of a batch of one, one per result and one of the table."""
    assert [row["_step"] for row in run.rows] == list(range(1, problems * (STEPS + 2) + 2))
    curves = Counter(key.removesuffix("/step") for row in run.rows for key in row if key.endswith("/step"))
    assert len(curves) == problems and set(curves.values()) == {STEPS + 1}
    shown = [row[key] for row in run.rows for key in row if key.startswith("images/") and key.endswith(".captions")]
    assert shown == [LABELS] * problems
    assert run.rows[-1]["results.nrows"] == problems == run.summary["evaluated"] and run.exit_code == 0


def test_attempts_and_a_sweep_are_runs_of_their_own(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("logger=wandb", "batch=1", f"optimizer.steps={STEPS}")
    assert cli.here(capfd, *words, "limit=1").code == 0
    assert cli.here(capfd, *words, "limit=2").code == 0
    first, second = offline_runs(cli.folder)
    assert (first.job_type, second.job_type) == ("attempt-1", "attempt-2")
    assert first.group == second.group == cli.folder.name and first.config["limit"] == 1 and second.config["limit"] == 2
    whole(first, 1)
    whole(second, 1)

    sweep = cli.plain(capfd, "-m", *cli.arguments(*words, "limit=1"), "seed=1,2")
    assert sweep.code == 0, sweep
    others = [path.parent for path in cli.outputs.glob("*/*/*/status.json") if path.parent.name != first.group]
    assert len(others) == 2
    for folder in others:
        (run,) = offline_runs(folder)
        whole(run, 1)
        assert run.group == folder.name and run.job_type == "attempt-1"
    assert {offline_runs(folder)[0].config["seed"] for folder in others} == {1, 2}
    files = [path.name for path in cli.outputs.rglob("*.wandb")]
    assert len(files) == len(set(files)) == 4, "nothing takes another's place when it is sent"
