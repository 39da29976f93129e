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

COMMAND = ("limit=10", "batch=2", "optimizer.steps=6", "checkpoint.every=1")


def attempts(folder: Path) -> list[dict[str, Any]]:
    """What the processes of a run said last."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("attempts/*.json"))]


def begun(log: Path) -> Counter[str]:
    """How often each batch was begun."""
    return Counter(line for line in log.read_text().splitlines() if line.startswith("batch of "))


@pytest.mark.parametrize("count", [2, 5])
def test_any_number_of_processes_leaves_what_one_leaves(cli: Cli, tmp_path: Path, count: int) -> None:
    alone, log = replace(cli, outputs=tmp_path / "alone"), tmp_path / "log"
    assert alone.finish(tmp_path / "alone.log", *COMMAND) == 0
    processes = [cli.launch(log, *COMMAND) for _ in range(count)]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * count, log.read_text()
    assert cli.folder.name == alone.folder.name
    assert leavings(cli.folder) == leavings(alone.folder) and len(leavings(cli.folder)) == 10 * 5 + 1
    assert json.loads((cli.folder / "status.json").read_text())["state"] == "done"
    assert begun(log) == begun(tmp_path / "alone.log") and len(begun(log)) == 5, "each batch once"
    assert [a["state"] for a in attempts(cli.folder)] == ["done"] * count
    assert not list((cli.folder / "leases").iterdir()) and not list((cli.folder / "state").iterdir())


def test_a_killed_process_is_replaced_after_its_lease(cli: Cli, tmp_path: Path) -> None:
    """The claim it leaves is one of another machine, where nobody can look whether it lives."""
    alone, log = replace(cli, outputs=tmp_path / "alone"), tmp_path / "log"
    assert alone.finish(tmp_path / "alone.log", *COMMAND) == 0
    victim = cli.launch(log, *COMMAND)
    while victim.is_alive() and not in_progress(cli):
        victim.join(0.001)
    victim.kill()
    victim.join()
    (claim,) = cli.outputs.glob("*/*/*/leases/problems-*")
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "host": "elsewhere", "machine_id": "another"}))
    assert cli.finish(log, *COMMAND, "lease.duration=3600", "lease.wait_for_others=false") == 75
    assert log.read_text().splitlines()[-1] == "2 problems are left to other processes"
    assert json.loads((cli.folder / "status.json").read_text())["pending"] == 2
    began = time.monotonic()
    assert cli.finish(log, *COMMAND, "lease.duration=3") == 0
    assert time.monotonic() - began > 3
    assert "waiting for 1 batches of other processes: elsewhere-" in log.read_text()
    assert leavings(cli.folder) == leavings(alone.folder)
    assert [a["state"] for a in attempts(cli.folder)] == ["running", "pending", "done"]
