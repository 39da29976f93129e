"""A batch has one holder at a time, and none for longer than its holder lives."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from classifier_lens.runner.cluster.batch_sharing import solve_shared
from classifier_lens.runner.cluster.leases import UNKNOWN_OWNER, Lease, LeaseLostError, Leases, Process, is_running
from classifier_lens.runner.files.atomic import UnwritableError
from classifier_lens.runner.results.batch_names import batch_name
from classifier_lens.runner.results.run_folder import RunFolder
from classifier_lens.runner.types import CaptionEdit, Problem, UserError

LEASE = 1.5  # seconds, so that a busy machine may stall for some
HERE = Process("here", 1, None)
THERE = Process("there", 1, None)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def claims(folder: Path, process: Process = HERE, lease: float = LEASE, **clock: Clock) -> Leases:
    return Leases(folder, lease, process, **clock)


def watching(folder: Path, batch: str, process: Process = HERE) -> tuple[Leases, Clock]:
    """A process that has found a batch held, and its clock."""
    clock = Clock()
    watcher = claims(folder, process, clock=clock)
    assert watcher.owner(batch) is not None
    return watcher, clock


def leave(folder: Path, process: Process, batch: str = "a", generation: int = 1) -> Path:
    """A claim that its process neither renews nor gives back."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{batch}.{generation}"
    path.write_text(json.dumps(asdict(process)))
    return path


@contextmanager
def sleeping() -> Iterator[Process]:
    """Another process of this machine, as it would name itself."""
    child = subprocess.Popen(["sleep", "600"])
    try:
        yield replace(Process.current(), pid=child.pid, start_ticks=None)
    finally:
        child.kill()
        child.wait()


def ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_batch_has_one_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    with claims(tmp_path).acquire("a") as first, claims(tmp_path, THERE).acquire("a") as second:
        assert first is not None and second is None
        assert claims(tmp_path, THERE).owner("a") == HERE
        with claims(tmp_path, THERE).acquire("b") as other:
            assert other is not None
    assert claims(tmp_path, THERE).owner("a") is None and not list(tmp_path.iterdir())
    with claims(tmp_path, THERE).acquire("a") as second:
        assert second is not None


def test_a_holder_that_lives_keeps_its_batch_beyond_the_lease(tmp_path: Path) -> None:
    with claims(tmp_path).acquire("a") as claim:
        for _ in range(10):
            time.sleep(LEASE / 4)
            with claims(tmp_path, THERE).acquire("a") as other:
                assert other is None
        assert claim is not None
        claim.check()


def test_a_holder_without_a_sign_of_life_loses_its_batch_after_the_lease(tmp_path: Path) -> None:
    leave(tmp_path, THERE)
    lost, (watcher, clock) = Lease(tmp_path, "a", 1), watching(tmp_path, "a")
    clock.now = LEASE
    with watcher.acquire("a") as early:
        assert early is None
    lost.check()
    clock.now = LEASE + 0.1
    with watcher.acquire("a") as late:
        assert late is not None and late.generation == 2
        with pytest.raises(LeaseLostError):
            lost.check()


@pytest.mark.parametrize("jump", [-1e6, -10.0, 10.0, 1e6])
def test_clocks_that_jump_or_differ_free_no_batch_and_keep_none(tmp_path: Path, jump: float) -> None:
    """The file's time is that of another clock: a renewal counts whatever it says, and no renewal counts as none."""
    path = leave(tmp_path, THERE)
    os.utime(path, (time.time() + jump,) * 2)
    watcher, clock = watching(tmp_path, "a")
    for i in range(1, 5):
        clock.now += 0.9 * LEASE
        os.utime(path, (time.time() + jump * (-1) ** i + i,) * 2)
        assert watcher.owner("a") == THERE
    clock.now += 1.1 * LEASE
    assert watcher.owner("a") is None


def test_a_batch_that_was_given_back_and_taken_again_is_watched_anew(tmp_path: Path) -> None:
    path = leave(tmp_path, THERE)
    watcher, clock = watching(tmp_path, "a")
    clock.now = 0.9 * LEASE
    path.unlink()
    os.utime(leave(tmp_path, replace(THERE, pid=2)), (1, 1))
    assert watcher.owner("a") == replace(THERE, pid=2)
    clock.now = 1.5 * LEASE
    assert watcher.owner("a") is not None


def test_what_others_have_finished_or_taken_is_lost(tmp_path: Path) -> None:
    """Whoever took it over has ended already, and left nothing."""
    with claims(tmp_path).acquire("a") as claim:
        assert claim is not None
        claims(tmp_path, THERE).clear("a")
        with pytest.raises(LeaseLostError):
            claim.check()


def test_who_is_known_to_have_ended_is_not_waited_for(tmp_path: Path) -> None:
    back = replace(THERE, host="y", job="7_0", restart_count=1)
    lost = ((Process("here", ended(), None), HERE), (HERE, HERE), (Process("x", 1, "7_0"), back))
    for i, (holder, taker) in enumerate(lost):
        leave(tmp_path, holder, str(i))
        with claims(tmp_path, taker).acquire(str(i)) as claim:
            assert claim is not None
    living = (
        (THERE, HERE),
        (Process("here", os.getppid(), None), HERE),
        (Process("x", 1, "7_0"), replace(HERE, job="7_1")),
        (Process("x", 1, "7_0", restart_count=1), replace(back, restart_count=1)),  # another shell of the same job
        (Process("x", 1, "7_0", restart_count=2), back),
        (Process("here", ended(), None, machine_id="another boot"), HERE),
        (Process("x", ended(), None, machine_id="same boot"), replace(HERE, machine_id="same boot")),
    )
    for i, (holder, taker) in enumerate(living):
        leave(tmp_path, holder, f"l{i}")
        with claims(tmp_path, taker).acquire(f"l{i}") as claim:
            assert claim is None, (holder, taker)


def test_processes_of_one_job_do_not_rob_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with sleeping() as other, claims(tmp_path, replace(other, job="77")).acquire("a"):
        with claims(tmp_path, Process.current()).acquire("a") as claim:
            assert claim is None
        os.kill(other.pid, signal.SIGKILL)
        while is_running(other.pid):  # until it is a zombie: nobody has waited for it yet
            time.sleep(0.001)
        with claims(tmp_path, Process.current()).acquire("a") as claim:
            assert claim is not None


def test_a_process_id_that_is_used_again_is_another_process(tmp_path: Path) -> None:
    own = Process.current()
    assert own.start_ticks is not None and own.machine_id and is_running(own.pid, own.start_ticks)
    before = replace(own, start_ticks=own.start_ticks - 1)
    assert not is_running(before.pid, before.start_ticks) and before.has_ended(replace(own, pid=1))
    leave(tmp_path, before)
    with claims(tmp_path, own).acquire("a") as claim:
        assert claim is not None


DAMAGE = {
    "empty": b"", "cut": b'{"host": "he', "junk": b"\xff\xfe\x00", "a number": b"7", "a list": b"[1]",
    "no pid": b'{"host": "x"}', "all processes": b'{"host": "here", "pid": -1, "job": null}',
    "own group": b'{"host": "here", "pid": 0, "job": null}', "text": b'{"host": "here", "pid": "1", "job": null}',
    "too large": b'{"host": "here", "pid": 99999999999999, "job": null}',
    "a job of many": b'{"host": "here", "pid": 1, "job": ["a"]}',
}  # fmt: skip


@pytest.mark.parametrize("content", DAMAGE.values(), ids=list(DAMAGE))
def test_a_claim_that_is_not_written_or_not_legible_holds_for_the_lease(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.1").write_bytes(content)
    watcher, clock = watching(tmp_path, "a")
    assert watcher.owner("a") == UNKNOWN_OWNER
    clock.now = 1.1 * LEASE
    with watcher.acquire("a") as claim:
        assert claim is not None
    watcher.clear("a")
    assert not list(tmp_path.iterdir())


def test_what_is_no_claim_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.1").mkdir()
    for name in ("a.tmp", "a.1~", "a.", "b.²", f"b.{10**20}"):
        (tmp_path / name).touch()
    watcher, clock = watching(tmp_path, "a")
    clock.now = 1.1 * LEASE
    for batch in "ab":
        with watcher.acquire(batch) as claim:
            assert claim is not None
        watcher.clear(batch)


def test_a_full_disk_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnwritableError, match="disk full"), claims(tmp_path).acquire("a"):
        pass
    assert not list(tmp_path.iterdir())


def test_of_many_that_take_at_once_one_wins(tmp_path: Path) -> None:
    """Round after round the batch's last holder is dead, and eight others want it."""
    everybody = [Process(f"host{i}", 1, "7", restart_count=1) for i in range(8)]
    for generation in range(1, 20, 2):
        leave(tmp_path, Process("x", 1, "7"), generation=generation)
        gate, checked = threading.Barrier(8), threading.Barrier(8)

        def attempt(process: Process, gate: Any = gate, checked: Any = checked) -> bool:
            gate.wait()
            with claims(tmp_path, process).acquire("a") as claim:
                checked.wait()
                return claim is not None

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, everybody)) == 1


def test_a_done_batch_leaves_nothing(tmp_path: Path) -> None:
    leave(tmp_path, HERE)
    with claims(tmp_path).acquire("a") as claim:
        assert claim is not None
    claims(tmp_path).clear("a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lease", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_lease_takes_time(tmp_path: Path, lease: float) -> None:
    with pytest.raises(UserError, match=r"lease.duration=.*: allowed are seconds above 0"):
        claims(tmp_path, lease=lease)


SLURM = (
    "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "SUBMITIT_LOCAL_JOB_ID", "SLURM_NTASKS",
    "SLURM_PROCID", "SLURM_RESTART_COUNT",
)  # fmt: skip
ARRAY = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.mark.parametrize(
    ("variables", "job", "restart"),
    [
        ({}, None, 0),
        ({"SLURM_JOB_ID": "12"}, "12", 0),
        (ARRAY, "11_3", 0),
        ({**ARRAY, "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "11_3.1", 0),
        ({**ARRAY, "SLURM_NTASKS": "2"}, "11_3", 0),  # a shell of the job, which is no task of it
        ({"SLURM_JOB_ID": "12", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, "12", 0),
        ({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"}, "12", 2),
        ({"SUBMITIT_LOCAL_JOB_ID": "5"}, "5", 0),
        (dict.fromkeys(SLURM, ""), None, 0),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": " "}, "12", 0),
        ({"SLURM_JOB_ID": "12", "SLURM_NTASKS": "two", "SLURM_PROCID": "1", "SLURM_RESTART_COUNT": "-1"}, "12", 0),
        ({"SLURM_JOB_ID": "12", "SLURM_NTASKS": "2", "SLURM_PROCID": "²", "SLURM_RESTART_COUNT": "9" * 50}, "12", 0),
        ({"SLURM_JOB_ID": "a/b c"}, "a_b_c", 0),
    ],
)  # fmt: skip
def test_a_process_knows_its_job(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], job: str | None, restart: int
) -> None:
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    own = Process.current()
    assert (own.job, own.restart_count, own.pid, own.host) == (job, restart, os.getpid(), socket.gethostname())
    assert own.name.startswith(f"{job}-" if job else own.host)


# --- sharing a run's batches ---------------------------------------------------------------------------------


class Told:
    """What was said of progress."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.said: list[str] = []
        self.others = 0

    def start_batch(self, names: Sequence[str]) -> None: ...

    def step(self, k: int, steps: int, loss: float, confidence: float | None) -> None: ...

    def set_phase(self, text: str) -> None:
        self.phases.append(text)

    def message(self, text: str) -> None:
        self.said.append(text)

    def advance(self, n: int) -> None:
        self.others += n


def problem(name: str) -> Problem:
    return Problem(name=name, seed=0, edit=CaptionEdit.unchanged("a", "a"), load=None, image_name=name, preserve="none")


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

        def solve(name: str, claim: Lease) -> None:
            time.sleep(self.seconds)
            claim.check()
            own.append(name)
            self.finished |= {p.name for p in BATCHES[name]}

        solve_shared(BATCHES, done, claims(self.folder, process), wait, solve, told)
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
    assert said == (
        "waiting for 1 batches of other processes: there-1; a batch is taken over after 1.5 s without activity"
    )
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

    def stall(name: str, claim: Lease) -> None:
        if name == "batch-0":
            leave(tmp_path, THERE, name, claim.generation + 1)
        claim.check()
        work.finished |= {p.name for p in BATCHES[name]}

    solve_shared(BATCHES, work.done, claims(tmp_path), False, stall, told)
    assert not work.done(BATCHES["batch-0"]) and all(work.done(BATCHES[f"batch-{i}"]) for i in range(1, 6))
    assert told.said == ["batch-0: another process has taken it over, since this one showed no activity"]


def test_a_batch_is_free_again_when_its_process_fails(tmp_path: Path) -> None:
    def fail(name: str, claim: Lease) -> None:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="batch-0"):
        solve_shared(BATCHES, lambda _: False, claims(tmp_path), True, fail, Told())
    assert claims(tmp_path, THERE).owner("batch-0") is None


# --- batches that share problems -----------------------------------------------------------------------------


def test_batches_that_share_problems_have_one_holder_together(tmp_path: Path) -> None:
    """Two processes that were given different limits, or sizes of batches, cut the same list in different ways."""
    whole, cut, rest, next_ = batch_name(0, 4), batch_name(0, 2), batch_name(2, 2), batch_name(4, 4)
    for held, other in ((whole, cut), (cut, whole), (whole, rest), (batch_name(1, 2), whole)):
        with claims(tmp_path).acquire(held) as first, claims(tmp_path, THERE).acquire(other) as second:
            assert first is not None and second is None
        assert not list(tmp_path.iterdir()), "whoever gives way leaves nothing"
    with claims(tmp_path).acquire(cut) as first, claims(tmp_path, THERE).acquire(rest) as second:
        assert first is not None and second is not None
        with claims(tmp_path, THERE).acquire(next_) as third:
            assert third is not None


def test_a_batch_that_shares_problems_with_an_abandoned_one_takes_both_over(tmp_path: Path) -> None:
    """Whoever gave no sign of life and wakes up has lost its batch, whatever the other one calls it."""
    whole, cut = batch_name(0, 4), batch_name(0, 2)
    leave(tmp_path, THERE, whole)
    lost, (watcher, clock) = Lease(tmp_path, whole, 1), watching(tmp_path, whole)
    with watcher.acquire(cut) as early:
        assert early is None
    lost.check()
    clock.now = 1.1 * LEASE
    with watcher.acquire(cut) as late:
        assert late is not None and late.batch == cut
        late.check()
        with pytest.raises(LeaseLostError):
            lost.check()
        with claims(tmp_path, replace(THERE, pid=2)).acquire(whole) as other:
            assert other is None
    assert [path.name for path in tmp_path.iterdir()] == [f"{whole}.1"]


def test_a_batch_that_was_taken_over_twice_is_lost_to_its_first_holder(tmp_path: Path) -> None:
    """The second may have ended since then, and its claim with it."""
    leave(tmp_path, THERE, "a", 1)
    leave(tmp_path, HERE, "a", 3)
    with pytest.raises(LeaseLostError):
        Lease(tmp_path, "a", 1).check()


def test_of_many_that_take_batches_that_share_problems_never_two_hold_one(tmp_path: Path) -> None:
    names, held, both, guard = [batch_name(0, n) for n in range(1, 9)], [0], [0], threading.Lock()

    def attempt(i: int) -> None:
        for _ in range(20):
            with claims(tmp_path, Process(f"host{i}", 1, None)).acquire(names[i]) as claim:
                if claim is not None:
                    with guard:
                        held[0] += 1
                        both[0] += held[0] > 1
                    time.sleep(0.001)
                    with guard:
                        held[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(8)))
    assert not both[0] and not list(tmp_path.iterdir())


# --- processes that are at work ------------------------------------------------------------------------------


def test_a_process_is_at_work_while_it_says_so(tmp_path: Path) -> None:
    """Also while it waits, and holds no batch."""
    here, there = claims(tmp_path), claims(tmp_path, THERE)
    assert not here.is_active(THERE.name)
    with there.announce():
        assert here.is_active(THERE.name) and not here.is_active("there-2") and not here.is_active("")
        assert not there.is_active(THERE.name), "it asks at its own start, which comes after what it met before"
    assert not here.is_active(THERE.name) and not list(tmp_path.iterdir())


def test_a_process_that_was_killed_is_at_work_no_more(tmp_path: Path) -> None:
    """What tells it: its machine, its job that came back, or that it gave no sign of life for a lease."""
    back = replace(HERE, job="7_0", restart_count=1)
    gone = (Process("here", ended(), None), Process("x", 1, "7_0"))
    for process in gone:
        leave(tmp_path, process, f"process-{process.name}")
    assert not any(claims(tmp_path, back).is_active(process.name) for process in gone)
    path = leave(tmp_path, THERE, f"process-{THERE.name}")
    assert claims(tmp_path, back).is_active(THERE.name)
    os.utime(path, (time.time() - 1.1 * LEASE,) * 2)
    assert not claims(tmp_path, back).is_active(THERE.name)
    with claims(tmp_path, back).announce():
        names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"process-{back.name}.1", path.name}, "what is left of a process that has ended is removed"


def test_a_problem_that_failed_is_tried_once_by_each_start_that_comes_after_its_attempt(tmp_path: Path) -> None:
    """An array of jobs of which some begin late, and one is put back into the queue."""
    folder, tried = RunFolder(tmp_path), list[str]()
    jobs = [Process(f"node{i}", 1, f"7_{i}") for i in range(4)]

    def begin(process: Process) -> None:
        folder.clear_failures(["a"], claims(tmp_path / "claims", process).is_active)
        if not folder.is_done("a"):
            tried.append(process.name)
            folder.write_failure("a", "ValueError: no", "Traceback ...", process.name)

    with claims(tmp_path / "claims", jobs[0]).announce():
        begin(jobs[0])
        with claims(tmp_path / "claims", jobs[1]).announce():
            begin(jobs[1])  # joins what is at work
    begin(jobs[2])  # after both have ended
    with claims(tmp_path / "claims", jobs[2]).announce():
        begin(jobs[3])
    leave(tmp_path / "claims", jobs[2], f"process-{jobs[2].name}")  # killed, and put back into the queue
    begin(replace(jobs[2], host="node9", restart_count=1))
    assert tried == [jobs[0].name, jobs[2].name, "7_2-node9-1"]
