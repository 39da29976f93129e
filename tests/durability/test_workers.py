"""Several processes at one run leave what one process leaves."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli import Cli
from tests.durability.test_kill import in_progress, leavings

COMMAND = ("limit=3", "batch=1", "optimizer.steps=4", "checkpoint.every=1")
BATCHES = 3  # of one problem each


def attempts(folder: Path) -> list[dict[str, Any]]:
    """What the processes of a run said last."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("attempts/*.json"))]


def begun(log: Path) -> Counter[str]:
    """How often each batch was begun."""
    return Counter(line for line in log.read_text().splitlines() if line.startswith("batch of "))


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A finished run of one process; its log lies beside its outputs."""
    folder = tmp_path_factory.mktemp("alone")
    cli = Cli.at(folder, tiny_folder, tiny_student)
    assert cli.finish(folder / "log", *COMMAND) == 0, (folder / "log").read_text()
    return cli


@pytest.fixture
def cli(alone: Cli, tmp_path: Path) -> Cli:
    """The same commands into other outputs."""
    return replace(alone, outputs=tmp_path / "outputs")


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_any_number_of_processes_leaves_what_one_leaves(cli: Cli, alone: Cli, tmp_path: Path, count: int) -> None:
    """Of four processes at least one finds no batch left."""
    log = tmp_path / "log"
    processes = [cli.launch(log, *COMMAND) for _ in range(count)]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * count, log.read_text()
    assert cli.folder.name == alone.folder.name
    assert leavings(cli.folder) == leavings(alone.folder) and len(leavings(cli.folder)) == BATCHES * 5 + 1
    assert json.loads((cli.folder / "status.json").read_text())["state"] == "done"
    assert begun(log) == begun(alone.outputs.parent / "log") and len(begun(log)) == BATCHES, "each batch once"
    assert [a["state"] for a in attempts(cli.folder)] == ["done"] * count
    assert not list((cli.folder / "leases").iterdir()) and not list((cli.folder / "state").iterdir())


def test_a_killed_process_is_replaced_after_its_lease(cli: Cli, alone: Cli, tmp_path: Path) -> None:
    """The claim it leaves is one of another machine, where nobody can look whether it lives."""
    log = tmp_path / "log"
    victim = cli.launch(log, *COMMAND)
    while victim.is_alive() and not in_progress(cli):
        victim.join(0.001)
    victim.kill()
    victim.join()
    (claim,) = cli.outputs.glob("*/*/*/leases/problems-*")
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "host": "elsewhere", "machine_id": "another"}))
    assert cli.finish(log, *COMMAND, "lease.duration=3600", "lease.wait_for_others=false") == 75
    assert log.read_text().splitlines()[-1] == "1 problems are left to other processes"
    assert json.loads((cli.folder / "status.json").read_text())["pending"] == 1
    began = time.monotonic()
    assert cli.finish(log, *COMMAND, "lease.duration=2") == 0
    assert time.monotonic() - began > 2
    assert "waiting for 1 batches of other processes: elsewhere-" in log.read_text()
    assert leavings(cli.folder) == leavings(alone.folder)
    assert [a["state"] for a in attempts(cli.folder)] == ["running", "pending", "done"]
