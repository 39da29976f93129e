"""Which process works at which batch, agreed by files in the run's folder alone, across machines.

A claim is a file `<batch>.<generation>`. It is made by an exclusive creation, which only one of several processes can
win, and holds while it is renewed; the highest generation counts. Whoever finds that its owner has ended, or sees no
renewal of it for the time of a lease, makes the next. Processes that are given another limit, or another size of
batches, may cut batches that share problems: a claim covers these batches, too, and holds only where nobody works at
any of them. No clock is compared with another one: each process watches with
its own, which does not jump, whether a claim changes.

filelock's `SoftFileLease` works in the same way, but keeps a claim that a full disk left empty for ever, takes a zombie
for alive, refuses two processes with different leases, and knows no jobs that come back.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from classifier_lens.runner.files.atomic import make_folder, wrap_write_errors
from classifier_lens.runner.results.batch_names import batches_overlap
from classifier_lens.runner.types import UserError

RENEWALS_PER_TIMEOUT = 6  # in the time of a lease, so that a slow file system may miss some
MAX_TIMEOUT = 1e6  # seconds of a lease: eleven days
PRESENCE_PREFIX = "process-"  # before the name of a process that is at work: a claim that holds as long as it is


class LeaseLostError(Exception):
    """Another process has taken the batch over, since this one gave no sign of life."""


@dataclass(frozen=True)
class Process:
    """Who works. host, pid: the machine's name and the process id; job: the cluster's name of the job, array task and
    rank, None without one; start_ticks: when the process began, in ticks since the machine was booted, since ids are
    used again, None where that cannot be seen; machine_id: what ids and ticks refer to, see `machine_id`;
    restart_count: how often the job was put back into its queue."""

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    job: str | None
    start_ticks: int | None = None
    machine_id: str = ""
    restart_count: Annotated[int, Field(ge=0)] = 0

    @staticmethod
    def current() -> Process:
        """This process, as SLURM and submitit's local jobs name it."""
        pid = os.getpid()
        restart = _count("SLURM_RESTART_COUNT") or 0
        return Process(socket.gethostname(), pid, _job(), _stat(pid)[1], machine_id(), restart)

    @property
    def name(self) -> str:
        """Fit for a file."""
        return "-".join(_plain(str(part)) for part in (self.job, self.host, self.pid) if part is not None)

    def has_ended(self, reader: Process) -> bool:
        """Whether the reader, who asks only for what it does not hold itself, can tell that this process has ended: it
        ran on the same machine, or its job came back from the queue and the reader is part of it."""
        if self == reader or (
            self.job is not None and self.job == reader.job and self.restart_count < reader.restart_count
        ):
            return True
        return (
            self.machine_id == reader.machine_id
            and self.host == reader.host
            and not is_running(self.pid, self.start_ticks)
        )


def machine_id() -> str:
    """Where process ids and start times mean the same: the machine since it was booted and, within it, the namespaces
    of a container; empty where the system tells nothing of it."""
    found = []
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found += [f"{os.stat(f'/proc/self/ns/{space}').st_ino:x}" for space in ("pid", "time")]
    return "-".join(found)


def is_running(pid: int, start: int | None = None) -> bool:
    """Whether this machine has such a process, which began at `start` if that is known. A zombie runs no more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    state, began = _stat(pid)
    return state not in ("Z", "X") and (start is None or began is None or start == began)


def _stat(pid: int) -> tuple[str, int | None]:
    """A process's state and its start in ticks, where the system shows them."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", None


def _job() -> str | None:
    """The cluster's name of this job. Variables may be empty, and shells of one job have no rank."""
    array, task, job, local = (
        _plain(os.environ.get(name, "").strip())
        for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "SUBMITIT_LOCAL_JOB_ID")
    )
    name = f"{array}_{task}" if array and task else job or local
    rank = _count("SLURM_PROCID")
    return f"{name}.{rank}" if name and rank is not None and (_count("SLURM_NTASKS") or 1) > 1 else name or None


def _count(name: str) -> int | None:
    """A variable of the environment that holds a count, None if it does not."""
    text = os.environ.get(name, "").strip()
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def _plain(text: str) -> str:
    """A name fit for a file."""
    return re.sub(r"[^\w.+-]", "_", text)[:80]


UNKNOWN_OWNER = Process("unknown", 0, None, machine_id="unknown")  # holds a claim that is not written, or not legible


@dataclass(frozen=True)
class Lease:
    """A batch that this process holds."""

    folder: Path
    batch: str
    generation: int

    @property
    def path(self) -> Path:
        return _file(self.folder, self.batch, self.generation)

    def check(self) -> None:
        """Raise `LeaseLostError` if another process has taken the batch over, and may have ended since then."""
        if max(_generations(self.folder, self.batch), default=0) > self.generation or not self.path.exists():
            raise LeaseLostError(self.batch)


@dataclass(frozen=True)
class Leases:
    """The claims of a run. folder: where they lie; duration: seconds without a sign of life that set a batch free;
    clock: seconds that never jump; _seen: what of a claim was seen last, and since when."""

    folder: Path
    duration: float
    process: Process
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Path, tuple[tuple[bytes, int], float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.duration <= MAX_TIMEOUT:
            raise UserError(f"lease.duration={self.duration}: allowed are seconds above 0, {MAX_TIMEOUT:.0f} at most")

    @contextmanager
    def acquire(self, batch: str) -> Iterator[Lease | None]:
        """Hold a batch within, or None where another process does. Afterwards it is free again."""
        made = self._make_all(batch)
        if not made:
            yield None
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(made, ended), daemon=True)
        thread.start()
        try:
            yield made[0]
        finally:
            ended.set()
            thread.join()
            _drop(made)

    @contextmanager
    def announce(self) -> Iterator[None]:
        """Others can tell within that this process is at work, also while it holds no batch."""
        for name in {path.name.rpartition(".")[0] for path in self.folder.glob(f"{PRESENCE_PREFIX}*.*")}:
            if self.owner(name) is None:  # killed
                self.clear(name)
        with self.acquire(f"{PRESENCE_PREFIX}{self.process.name}"):
            yield

    def is_active(self, name: str) -> bool:
        """Whether a process of this name is at work at the run, by its signs of life and the clocks: what is wrong by
        these is asked once more, and no result follows from it."""
        presence = f"{PRESENCE_PREFIX}{name}"
        return self.owner(presence) is not None and self.seconds_since_renewal(presence) < self.duration

    def clear(self, batch: str) -> None:
        """Remove what is left of the claims to a batch that is done."""
        for generation in _generations(self.folder, batch):
            with suppress(IsADirectoryError):  # no claim, which harms nobody
                _file(self.folder, batch, generation).unlink(missing_ok=True)

    def owner(self, batch: str) -> Process | None:
        """The process that holds a batch, None where it is free."""
        latest = max(_generations(self.folder, batch), default=None)
        return None if latest is None else self._alive(_file(self.folder, batch, latest))

    def seconds_since_renewal(self, batch: str) -> float:
        """Seconds since a batch's last sign of life by the clocks, of which two machines may have different ones: good
        enough to show."""
        latest = max(_generations(self.folder, batch), default=None)
        looked = None if latest is None else _look(_file(self.folder, batch, latest))
        return 0.0 if looked is None else time.time() - looked[1].st_mtime

    def _make_all(self, batch: str) -> list[Lease]:
        """The claims to a batch and to those that share problems with it, none where another process holds one."""
        make_folder(self.folder)
        names, made = [batch, *self._sharing(batch)], list[Lease]()
        if any(self.owner(name) is not None for name in names):
            return made
        for name in names:
            if (claim := self._make(name)) is None:
                break
            made.append(claim)
        # Of two processes that make claims to such batches at once each sees the other's, or the later one does.
        if len(made) < len(names) or any(self.owner(name) is not None for name in self._sharing(batch)):
            _drop(made)
            made.clear()
        return made

    def _sharing(self, batch: str) -> list[str]:
        """The other batches that share problems with one, as far as they have claims."""
        names = {path.name.rpartition(".")[0] for path in self.folder.glob("*.*")} - {batch}
        return sorted(name for name in names if batches_overlap(name, batch))

    def _make(self, batch: str) -> Lease | None:
        latest = max(_generations(self.folder, batch), default=0)
        if latest and self._alive(_file(self.folder, batch, latest)):
            return None
        claim = Lease(self.folder, batch, latest + 1)
        with wrap_write_errors(claim.path):
            try:
                file = open(claim.path, "x")
            except FileExistsError:  # another process was faster
                return None
            try:
                with file:
                    file.write(json.dumps(asdict(self.process)))  # in one piece: a reader sees nothing of it, or all
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:  # a full disk
                claim.path.unlink(missing_ok=True)
                raise
        return claim

    def _alive(self, path: Path) -> Process | None:
        """The process whose claim this is, if the claim still holds."""
        looked = _look(path)
        if looked is None:
            return None
        text, now = looked[0], (looked[0], looked[1].st_mtime_ns)
        before, since = self._seen.get(path, (None, 0.0))
        if before != now:
            self._seen[path] = now, self.clock()
        elif self.clock() - since > self.duration:
            return None
        holder = _process(text)
        return None if holder.has_ended(self.process) else holder

    def _renew(self, claims: Sequence[Lease], ended: threading.Event) -> None:
        while not ended.wait(self.duration / RENEWALS_PER_TIMEOUT):
            for claim in claims:
                with suppress(OSError):  # gone, or a file system that is away for a moment
                    os.utime(claim.path)


def _drop(claims: Sequence[Lease]) -> None:
    """Give claims back."""
    for claim in claims:
        with suppress(OSError):  # a file system that cannot be written any more: the claim ends with its lease
            claim.path.unlink(missing_ok=True)


def _file(folder: Path, batch: str, generation: int) -> Path:
    return folder / f"{batch}.{generation}"


def _generations(folder: Path, batch: str) -> list[int]:
    endings = (path.name.rpartition(".")[2] for path in folder.glob(f"{batch}.*"))
    return [int(ending) for ending in endings if re.fullmatch("[0-9]{1,18}", ending)]


def _look(path: Path) -> tuple[bytes, os.stat_result] | None:
    """What a claim says, nothing where it cannot be read, and what its file's state is; None where there is none."""
    try:
        # Opening makes a network's file system look at the file anew.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            state = os.fstat(descriptor)
            return os.read(descriptor, 4096) if stat.S_ISREG(state.st_mode) else b"", state
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError:
        with suppress(FileNotFoundError):
            return b"", path.lstat()
        return None


def _process(text: bytes) -> Process:
    """The process that a claim names."""
    try:
        return TypeAdapter(Process).validate_json(text, strict=True)
    except ValueError:
        return UNKNOWN_OWNER
