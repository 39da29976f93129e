"""Jobs of a real SLURM, cut short, signalled and killed, leave what one run leaves. `make test-slurm` starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from classifier_lens.runner.cluster.job_status import RunStatus, Submission, latest_submission, read_submission
from classifier_lens.runner.cluster.submit import main as submit
from tests.cli import ROOT, Cli
from tests.durability.test_kill import leavings

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no SLURM of its own: make test-slurm starts one"),
]
PROBLEMS = 6
STEPS = 12  # of each problem; every third one saves a state
COMMAND = (f"limit={PROBLEMS}", f"optimizer.steps={STEPS}", "batch=1", "checkpoint.every=3", "lease.duration=6")
# SLURM looks at time limits every 30 s, and signals up to 30 s early: a job has 80 s to 110 s, its start included.
JOBS = ("submit.mem_gb=2", "submit.cpus=1", "submit.minutes=2", "submit.signal=10")
# As long as a job has at most: what jobs begin together they cannot finish before their first signal.
SECONDS_PER_JOB = 110.0
CONCURRENT_JOBS = min(4, len(os.sched_getaffinity(0)))


def ask(*command: str) -> str:
    """What a command of SLURM says."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def fields(job: str) -> dict[str, str]:
    """What SLURM knows of a job."""
    words = ask("scontrol", "show", "job", "--oneliner", job).split()
    return {word.partition("=")[0]: word.partition("=")[2] for word in words}


def wait(submission: Submission, until: Callable[[], bool], what: str, seconds: float = 900.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not until():
        late = time.monotonic() >= deadline
        assert not late, f"{what}: not so after {seconds:.0f} s\n{told(submission)}{said(submission)}"
        time.sleep(0.3)


def told(submission: Submission) -> str:
    """What SLURM says of each job: its state and the reason."""
    own = f"--jobs={submission.folder.name}"
    return ask("squeue", "--noheader", "--array", "--states=all", "--format=%i %T, reason: %r", own)


def logs(submission: Submission) -> list[Path]:
    return sorted(submission.folder.parent.glob(f"logs/{submission.folder.name}*/*.*"))


def said(submission: Submission) -> str:
    """Everything that the jobs have printed."""
    return "\n".join(path.read_text(errors="replace") for path in logs(submission) if path.suffix in (".out", ".err"))


def ended(submission: Submission) -> bool:
    return not ask("squeue", "--noheader", "--format=%i", "--states=PENDING,RUNNING,COMPLETING,SUSPENDED").split()


@pytest.fixture(autouse=True)
def queue() -> Iterator[None]:
    """Leave no job to the next test."""
    yield
    ask("scancel", "--user=root")


def take(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the steps of all problems take so long together, one after the other."""
    monkeypatch.setenv("SECONDS_PER_STEP", str(seconds / (PROBLEMS * STEPS)))


def submitted(cli: Cli, capfd: pytest.CaptureFixture[str], *words: str) -> Submission:
    """Hand a run to the queue, as `python scripts/submit.py` would."""
    assert submit(cli.arguments(*JOBS, *words)) == 0
    assert f"submission: {latest_submission(cli.outputs).resolve()}" in capfd.readouterr().out
    return read_submission(latest_submission(cli.outputs))


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process that nobody disturbs leaves."""
    folder = tmp_path_factory.mktemp("alone")
    calm = Cli.at(folder, tiny_folder, tiny_student)
    assert calm.finish(folder / "log", *COMMAND) == 0, (folder / "log").read_text()
    return leavings(calm.folder)


def steps(submission: Submission) -> dict[str, Counter[int]]:
    """How often the steps that are said of each problem were computed, by all jobs together."""
    found: dict[str, Counter[int]] = {}
    for path in logs(submission):
        for line in path.read_text(errors="replace").splitlines() if path.suffix == ".out" else ():
            if begun := re.fullmatch(r"batch of 1: (\S+)", line):
                name = begun[1]
            elif step := re.match(r"  step (\d+)/", line):
                found.setdefault(name, Counter())[int(step[1])] += 1
    return found


def counts(run: RunStatus) -> dict[str, int]:
    return dict(Counter(state for state, _ in run.problem_states.values()))


def running(submission: Submission) -> list[str]:
    """The jobs that have begun a batch."""
    return [
        why.split("-")[0]
        for run in submission.runs()
        for state, why in run.problem_states.values()
        if state == "running"
    ]


def test_jobs_that_are_too_short_go_on_where_they_were(
    cli: Cli, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, alone: dict[str, bytes]
) -> None:
    take(SECONDS_PER_JOB * CONCURRENT_JOBS, monkeypatch)
    submission = submitted(cli, capfd, *COMMAND, "submit.workers=4")
    assert len(submission.jobs) == 4 and all(re.fullmatch(r"\d+_[0-3]", job) for job in submission.jobs)
    wait(submission, lambda: ended(submission), "the end of all jobs")
    assert leavings(cli.folder) == alone
    requeued = said(submission).count("Requeued job")
    assert requeued >= 2, said(submission)
    assert sum(int(fields(job)["Restarts"]) for job in submission.jobs) == requeued
    computed = steps(submission)
    assert set(computed) == set((cli.folder / "problems.txt").read_text().split())
    assert {count for own in computed.values() for count in own.values()} == {1}, "nothing is computed twice"
    assert [submission.job_state(job, {}) for job in submission.jobs] == ["done"] * 4
    assert counts(RunStatus(cli.folder)) == {"done": 6}
    states = Counter(json.loads(path.read_text())["state"] for path in cli.folder.glob("attempts/*.json"))
    assert states["stopped"] >= 1 and states["done"] >= 1 and set(states) <= {"stopped", "done", "pending"}


def test_signals_a_killed_node_and_a_killed_job(
    cli: Cli, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, alone: dict[str, bytes]
) -> None:
    take(60, monkeypatch)
    submission = submitted(cli, capfd, *COMMAND, "submit.workers=2", "submit.minutes=30")
    first, second = submission.jobs
    wait(submission, lambda: set(running(submission)) == {first, second}, "both jobs at work")

    ask("scancel", "--signal=USR2", first)
    wait(submission, lambda: f"Requeued job {first}" in said(submission), "the signalled job in the queue")

    # Before the signalled job is back: so there is work left for it.
    victim = attempt_of(cli.folder, second)["pid"]
    os.kill(victim, signal.SIGKILL)
    wait(submission, lambda: fields(second)["JobState"] == "FAILED", "the failure of the killed job")
    assert submission.job_state(second, {}) == "ended without an exit code"
    wait(submission, lambda: first in running(submission), "the signalled job at work again")

    node = int((Path(os.environ["SLURM_CONF"]).parent / "slurmd.pid").read_text())
    os.kill(node, signal.SIGKILL)
    subprocess.run(["slurmd", "-N", "localhost"], check=True)
    wait(submission, lambda: ended(submission), "the end of the job that is left")
    assert leavings(cli.folder) == alone
    assert submission.job_state(first, {}) == "done"


def attempt_of(folder: Path, job: str) -> dict[str, Any]:
    """The last attempt of a job."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("attempts/*.json"))]
    return [attempt for attempt in found if attempt["job"] == job][-1]


def test_a_job_that_cannot_run_fails_and_says_so(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    submission = submitted(cli, capfd, *COMMAND, "submit.workers=1", "data=folder", "data.path=nowhere")
    wait(submission, lambda: ended(submission), "the end of the job")
    (job,) = submission.jobs
    assert (fields(job)["JobState"], fields(job)["ExitCode"]) == ("FAILED", "2:0")
    assert "data.path=nowhere: no such folder" in said(submission)
    assert submit(["status", f"submission={submission.folder}"]) == 1
    assert "failed, exit code 2" in capfd.readouterr().out


def test_a_sweep_by_hydras_launcher(cli: Cli, tmp_path: Path) -> None:
    words = cli.arguments("limit=2", "batch=1", "optimizer.steps=3")
    slurm = ["hydra/launcher=slurm", "hydra.launcher.mem_gb=2", "hydra.launcher.cpus_per_task=1"]
    outcome = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "-m", *words, "seed=1,2", *slurm],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    runs = sorted(path.parent for path in cli.outputs.glob("*/*/*/status.json"))
    assert [counts(RunStatus(run)) for run in runs] == [{"done": 2}] * 2
    attempts = [json.loads(path.read_text()) for path in cli.outputs.glob("*/*/*/attempts/*.json")]
    assert [attempt["state"] for attempt in attempts] == ["done"] * 2
    assert len({attempt["job"] for attempt in attempts}) == 2
