"""A batch has one holder at a time, and none for longer than its holder lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from runner.claims import UNWRITTEN, Claim, Claims, Lost, Process
from runner.share import share
from runner.types import Edit, Problem, UserError

LEASE = 1.5  # seconds, so that a busy machine may stall for some
HERE = Process("here", 1, None)
THERE = Process("there", 1, None)


def claims(folder: Path, process: Process = HERE, lease: float = LEASE) -> Claims:
    return Claims(folder, lease, process)


def leave(folder: Path, process: Process, batch: str = "a", generation: int = 1, age: float = 0.0) -> Path:
    """A claim that its process neither renews nor gives back."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{batch}.{generation}"
    path.write_text(json.dumps(asdict(process)))
    os.utime(path, (time.time() - age,) * 2)
    return path


def ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_batch_has_one_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    with claims(tmp_path).take("a") as first, claims(tmp_path, THERE).take("a") as second:
        assert first is not None and second is None
        assert claims(tmp_path, THERE).holder("a") == HERE
        with claims(tmp_path, THERE).take("b") as other:
            assert other is not None
    assert claims(tmp_path, THERE).holder("a") is None and not list(tmp_path.iterdir())
    with claims(tmp_path, THERE).take("a") as second:
        assert second is not None


def test_a_holder_that_lives_keeps_its_batch_beyond_the_lease(tmp_path: Path) -> None:
    with claims(tmp_path).take("a") as claim:
        for _ in range(10):
            time.sleep(LEASE / 4)
            with claims(tmp_path, THERE).take("a") as other:
                assert other is None
        assert claim is not None
        claim.check()


def test_a_holder_without_a_sign_of_life_loses_its_batch_after_the_lease(tmp_path: Path) -> None:
    leave(tmp_path, THERE, age=0.5 * LEASE)
    lost = Claim(tmp_path, "a", 1)
    with claims(tmp_path).take("a") as early:
        assert early is None
    lost.check()
    time.sleep(LEASE)
    with claims(tmp_path).take("a") as late:
        assert late is not None and late.generation == 2
        with pytest.raises(Lost):
            lost.check()


def test_who_is_known_to_have_ended_is_not_waited_for(tmp_path: Path) -> None:
    lost = ((Process("here", ended(), None), HERE), (HERE, HERE), (Process("x", 1, "7_0"), Process("y", 2, "7_0")))
    for i, (holder, taker) in enumerate(lost):
        leave(tmp_path, holder, str(i))
        with claims(tmp_path, taker).take(str(i)) as claim:
            assert claim is not None
    living = (
        (THERE, HERE),
        (Process("here", os.getppid(), None), HERE),
        (Process("x", 1, "7_0"), replace(HERE, job="7_1")),
    )
    for i, (holder, taker) in enumerate(living):
        leave(tmp_path, holder, f"l{i}")
        with claims(tmp_path, taker).take(f"l{i}") as claim:
            assert claim is None


def test_a_claim_that_is_not_written_yet_counts(tmp_path: Path) -> None:
    (tmp_path / "a.1").touch()
    assert claims(tmp_path).holder("a") == UNWRITTEN
    time.sleep(1.5 * LEASE)
    assert claims(tmp_path).holder("a") is None


def test_of_many_that_take_at_once_one_wins(tmp_path: Path) -> None:
    """Round after round the batch's last holder is dead, and eight others want it."""
    everybody = [Process(f"host{i}", 1, None) for i in range(8)]
    for generation in range(1, 20, 2):
        leave(tmp_path, THERE, generation=generation, age=2 * LEASE)
        gate, checked = threading.Barrier(8), threading.Barrier(8)

        def attempt(process: Process, gate: Any = gate, checked: Any = checked) -> bool:
            gate.wait()
            with claims(tmp_path, process).take("a") as claim:
                checked.wait()
                return claim is not None

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, everybody)) == 1


def test_a_done_batch_leaves_nothing(tmp_path: Path) -> None:
    leave(tmp_path, THERE, age=2 * LEASE)
    with claims(tmp_path).take("a") as claim:
        assert claim is not None
    claims(tmp_path).forget("a")
    assert not list(tmp_path.iterdir())


def test_a_lease_takes_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"claim.lease=0"):
        claims(tmp_path, lease=0)


def test_a_process_knows_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "SUBMITIT_LOCAL_JOB_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert Process.own().job is None and Process.own().pid == os.getpid()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert Process.own().job == "12" and Process.own().name.startswith("12-")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert Process.own().job == "11_3"
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert Process.own().job == "11_3.1"


# --- sharing a run's batches ---------------------------------------------------------------------------------


class Told:
    """What was said of progress."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.said: list[str] = []
        self.others = 0

    def batch(self, names: Sequence[str]) -> None: ...

    def step(self, k: int, steps: int, loss: float, confidence: float | None) -> None: ...

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def say(self, text: str) -> None:
        self.said.append(text)

    def finished(self, n: int) -> None:
        self.others += n


def problem(name: str) -> Problem:
    return Problem(name=name, seed=0, edit=Edit.unchanged("a", "a"), image=None, picture=name, keep="none")


BATCHES = {f"batch-{i}": [problem(f"{i}{j}") for j in "xy"] for i in range(6)}


class Work:
    """Batches of two problems; what is done is noted, as a run's folder would. by, open: what each process solved, and
    what it found undone at any time."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder, self.seconds = folder, seconds
        self.finished: set[str] = set()
        self.by: dict[Process, list[str]] = {}
        self.open: dict[Process, set[str]] = {}

    def done(self, batch: Sequence[Problem]) -> bool:
        return all(p.name in self.finished for p in batch)

    def share(self, process: Process, wait: bool = True) -> Told:
        own, told = self.by.setdefault(process, []), Told()
        open_ = self.open.setdefault(process, set())

        def done(batch: Sequence[Problem]) -> bool:
            answer = self.done(batch)
            if not answer:
                open_.update(name for name, other in BATCHES.items() if other is batch)
            return answer

        def solve(name: str, claim: Claim) -> None:
            time.sleep(self.seconds)
            claim.check()
            own.append(name)
            self.finished |= {p.name for p in BATCHES[name]}

        share(BATCHES, done, claims(self.folder, process), wait, solve, told)
        return told


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_is_done_once_by_any_number_of_processes(tmp_path: Path, count: int) -> None:
    """Each is told of what it saw undone and others did; a process that begins late may find little or nothing."""
    work = Work(tmp_path, 0.02)
    everybody = [Process(f"host{i}", 1, None) for i in range(count)]
    with ThreadPoolExecutor(count) as pool:
        told = dict(zip(everybody, pool.map(work.share, everybody), strict=True))
    assert sorted(name for own in work.by.values() for name in own) == sorted(BATCHES)
    for process in everybody:
        assert told[process].others == 2 * len(work.open[process] - set(work.by[process]))
    assert not list(tmp_path.iterdir())


def test_what_others_hold_is_waited_for_or_left(tmp_path: Path) -> None:
    work = Work(tmp_path)
    leave(tmp_path, THERE, "batch-2")
    assert work.share(HERE, wait=False).phases == []
    assert set(BATCHES) - set(work.by[HERE]) == {"batch-2"}
    (said, *_) = work.share(HERE).phases
    assert said == "waiting for 1 of others' batches: there-1"
    assert set(work.by[HERE]) == set(BATCHES), "taken over after the lease"


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.finished = {"0x", "0y", "1x"}
    told = work.share(HERE)
    assert "batch-0" not in work.by[HERE] and "batch-1" in work.by[HERE]
    assert told.others == 0, "what was done before is not counted again"


def test_a_batch_that_was_lost_is_left_to_its_new_holder(tmp_path: Path) -> None:
    work = Work(tmp_path)
    told = Told()

    def stall(name: str, claim: Claim) -> None:
        if name == "batch-0":
            leave(tmp_path, THERE, name, claim.generation + 1)
        claim.check()
        work.finished |= {p.name for p in BATCHES[name]}

    share(BATCHES, work.done, claims(tmp_path), False, stall, told)
    assert not work.done(BATCHES["batch-0"]) and all(work.done(BATCHES[f"batch-{i}"]) for i in range(1, 6))
    assert told.said == ["batch-0: another process has taken it over, as this one gave no sign of life"]


def test_a_batch_is_free_again_when_its_process_fails(tmp_path: Path) -> None:
    def fail(name: str, claim: Claim) -> None:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="batch-0"):
        share(BATCHES, lambda _: False, claims(tmp_path), True, fail, Told())
    assert claims(tmp_path, THERE).holder("batch-0") is None
