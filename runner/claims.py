"""Which process works at which batch, agreed by files in the run's folder alone, across machines.

A claim is a file `<batch>.<generation>`. It is made by an exclusive creation, which only one of several processes can
win, and holds while it is renewed; the highest generation counts. Whoever finds that one without a sign of life makes
the next.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.types import UserError

RENEWALS = 6  # in the time of a lease, so that a slow file system may miss some


class Lost(Exception):
    """Another process has taken the batch over, since this one gave no sign of life."""


@dataclass(frozen=True)
class Process:
    """Who works: host and process id; job: the cluster's name of the job, array task and rank, None without one."""

    host: str
    pid: int
    job: str | None

    @staticmethod
    def own() -> Process:
        """This process, as SLURM and submitit's local jobs name it."""
        env = os.environ
        array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{task}" if array and task else env.get("SLURM_JOB_ID") or env.get("SUBMITIT_LOCAL_JOB_ID")
        if job and int(env.get("SLURM_NTASKS", 1)) > 1:
            job = f"{job}.{env['SLURM_PROCID']}"
        return Process(socket.gethostname(), os.getpid(), job)

    @property
    def name(self) -> str:
        """Fit for a file."""
        return "-".join(str(part) for part in (self.job, self.host, self.pid) if part is not None)

    def gone(self, reader: Process) -> bool:
        """Whether the reader, who asks only for what it does not hold itself, can tell that this process has ended: it
        ran on the same machine, or the reader is the same job or process, begun again."""
        if self == reader or (self.job is not None and self.job == reader.job):
            return True
        return self.host == reader.host and not is_running(self.pid)


def is_running(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


UNWRITTEN = Process("unknown", 0, None)  # holds a claim that is made and not written yet


@dataclass(frozen=True)
class Claim:
    """A batch that this process holds."""

    folder: Path
    batch: str
    generation: int

    @property
    def path(self) -> Path:
        return _file(self.folder, self.batch, self.generation)

    def check(self) -> None:
        """Raise `Lost` if another process has taken the batch over."""
        if _file(self.folder, self.batch, self.generation + 1).exists():
            raise Lost(self.batch)


@dataclass(frozen=True)
class Claims:
    """The claims of a run. folder: where they lie; lease: seconds without a sign of life that set a batch free."""

    folder: Path
    lease: float
    process: Process

    def __post_init__(self) -> None:
        if self.lease <= 0:
            raise UserError(f"claim.lease={self.lease}: allowed are seconds above 0")

    @contextmanager
    def take(self, batch: str) -> Iterator[Claim | None]:
        """Hold a batch within, or None where another process does. Afterwards it is free again."""
        claim = self._make(batch)
        if claim is None:
            yield None
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(claim, ended), daemon=True)
        thread.start()
        try:
            yield claim
        finally:
            ended.set()
            thread.join()
            claim.path.unlink(missing_ok=True)

    def forget(self, batch: str) -> None:
        """Remove what is left of the claims to a batch that is done."""
        for generation in _generations(self.folder, batch):
            _file(self.folder, batch, generation).unlink(missing_ok=True)

    def holder(self, batch: str) -> Process | None:
        """The process that holds a batch, None where it is free."""
        latest = max(_generations(self.folder, batch), default=None)
        return None if latest is None else self._alive(_file(self.folder, batch, latest))

    def _make(self, batch: str) -> Claim | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        latest = max(_generations(self.folder, batch), default=0)
        if latest and self._alive(_file(self.folder, batch, latest)):
            return None
        claim = Claim(self.folder, batch, latest + 1)
        try:
            with open(claim.path, "x") as file:
                file.write(json.dumps(asdict(self.process)))  # in one piece: a reader sees nothing of it, or all
        except FileExistsError:  # another process was faster
            return None
        return claim

    def _alive(self, path: Path) -> Process | None:
        """The process whose claim this is, if the claim still holds."""
        try:
            with open(path) as file:  # opening makes a network's file system look at the file anew
                text, renewed = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        if self._now() - renewed > self.lease:
            return None
        holder = Process(**json.loads(text)) if text else UNWRITTEN
        return None if holder.gone(self.process) else holder

    def _now(self) -> float:
        """The time by the clock of the file system: those of two machines may differ."""
        clock = self.folder / f".clock-{self.process.name}"
        clock.touch()
        now = clock.stat().st_mtime
        clock.unlink(missing_ok=True)
        return now

    def _renew(self, claim: Claim, ended: threading.Event) -> None:
        while not ended.wait(self.lease / RENEWALS):
            with suppress(OSError):  # gone, or a file system that is away for a moment
                os.utime(claim.path)


def _file(folder: Path, batch: str, generation: int) -> Path:
    return folder / f"{batch}.{generation}"


def _generations(folder: Path, batch: str) -> list[int]:
    return [int(path.name.rpartition(".")[2]) for path in folder.glob(f"{batch}.*")]
