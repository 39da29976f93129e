"""Leases of batches: which process works on which batch, agreed across machines by files in the run folder alone.

A lease is a file `<batch>.<generation>`. It is created exclusively, so that only one of several processes succeeds, and
is valid while its owner renews it; the highest generation counts. A process that finds that the owner has ended, or
sees no renewal for `duration`, creates the next generation. Processes with another limit or batch size may form batches
that share problems: a lease covers these batches, too, and is granted only if no process works on any of them. Clocks
are never compared: each process observes with its own monotonic clock whether a lease changes.

filelock's `SoftFileLease` works in the same way, but keeps a lease forever that a full disk left empty, takes a zombie
for alive, rejects two processes with different durations, and does not know requeued jobs.
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

RENEWALS_PER_TIMEOUT = 6  # more than one, since a slow file system may miss some
MAX_TIMEOUT = 1e6  # s; eleven days
PRESENCE_PREFIX = "process-"  # of the lease that a process holds on its own name while it works


class LeaseLostError(Exception):
    """Another process has taken the batch over, since this one showed no activity."""


@dataclass(frozen=True)
class Process:
    """A process. host, pid: machine name and process id; job: id of the cluster's job, array task and rank, None
    outside of a cluster; start_ticks: start time in ticks since boot, which distinguishes reused process ids, None if
    the system does not show it; machine_id: see `machine_id`; restart_count: how often the job was requeued."""

    host: str
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    job: str | None
    start_ticks: int | None = None
    machine_id: str = ""
    restart_count: Annotated[int, Field(ge=0)] = 0

    @staticmethod
    def current() -> Process:
        """This process, with its job in SLURM or in submitit's local cluster."""
        pid = os.getpid()
        restart = _count("SLURM_RESTART_COUNT") or 0
        return Process(socket.gethostname(), pid, _job(), _stat(pid)[1], machine_id(), restart)

    @property
    def name(self) -> str:
        """A name that is valid in a file name."""
        return "-".join(_plain(str(part)) for part in (self.job, self.host, self.pid) if part is not None)

    def has_ended(self, reader: Process) -> bool:
        """Whether the reader knows that this process has ended: it ran on the same machine, or its job was requeued and
        the reader belongs to it. The reader itself counts as ended: it checks only leases that it does not hold."""
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
    """The scope of process ids and start times: the machine since its boot, and the namespaces of a container; empty if
    the system does not show it."""
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts += [f"{os.stat(f'/proc/self/ns/{space}').st_ino:x}" for space in ("pid", "time")]
    return "-".join(parts)


def is_running(pid: int, start: int | None = None) -> bool:
    """Whether this machine runs a process with this id and start time, if that is known. A zombie does not run."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        pass
    state, start_ticks = _stat(pid)
    return state not in ("Z", "X") and (start is None or start_ticks is None or start == start_ticks)


def _stat(pid: int) -> tuple[str, int | None]:
    """The state and the start time in ticks of a process, if the system shows them."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", None


def _job() -> str | None:
    """The cluster's id of this job. Variables may be empty, and interactive shells of a job have no rank."""
    array, task, job, local = (
        _plain(os.environ.get(name, "").strip())
        for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID", "SUBMITIT_LOCAL_JOB_ID")
    )
    name = f"{array}_{task}" if array and task else job or local
    rank = _count("SLURM_PROCID")
    return f"{name}.{rank}" if name and rank is not None and (_count("SLURM_NTASKS") or 1) > 1 else name or None


def _count(name: str) -> int | None:
    """The value of an environment variable if it is a count, otherwise None."""
    text = os.environ.get(name, "").strip()
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def _plain(text: str) -> str:
    """The text with other characters replaced, valid in a file name."""
    return re.sub(r"[^\w.+-]", "_", text)[:80]


UNKNOWN_OWNER = Process("unknown", 0, None, machine_id="unknown")  # of an empty or illegible lease


@dataclass(frozen=True)
class Lease:
    """A lease of this process on a batch."""

    folder: Path
    batch: str
    generation: int

    @property
    def path(self) -> Path:
        return _file(self.folder, self.batch, self.generation)

    def check(self) -> None:
        """Raise LeaseLostError if another process has taken the batch over, even if that one has ended since."""
        if max(_generations(self.folder, self.batch), default=0) > self.generation or not self.path.exists():
            raise LeaseLostError(self.batch)


@dataclass(frozen=True)
class Leases:
    """The leases of a run. folder: of their files; duration: s without renewal after which a lease ends; clock:
    monotonic, s; _seen: the last observed content and modification time of a lease, and since when."""

    folder: Path
    duration: float
    process: Process
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Path, tuple[tuple[bytes, int], float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.duration <= MAX_TIMEOUT:
            raise UserError(f"lease.duration={self.duration}: allowed are seconds above 0 and up to {MAX_TIMEOUT:.0f}")

    @contextmanager
    def acquire(self, batch: str) -> Iterator[Lease | None]:
        """Hold a lease on a batch within; None if another process has one. The lease is released afterwards."""
        leases = self._create_all(batch)
        if not leases:
            yield None
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(leases, ended), daemon=True)
        thread.start()
        try:
            yield leases[0]
        finally:
            ended.set()
            thread.join()
            _release(leases)

    @contextmanager
    def announce(self) -> Iterator[None]:
        """Within, other processes see that this process works at the run, even while it holds no batch."""
        for name in {path.name.rpartition(".")[0] for path in self.folder.glob(f"{PRESENCE_PREFIX}*.*")}:
            if self.owner(name) is None:  # its process was killed
                self.clear(name)
        with self.acquire(f"{PRESENCE_PREFIX}{self.process.name}"):
            yield

    def is_active(self, name: str) -> bool:
        """Whether a process of this name works at the run. Clocks of two machines may differ, so that it may be
        wrong; no result depends on it."""
        presence = f"{PRESENCE_PREFIX}{name}"
        return self.owner(presence) is not None and self.seconds_since_renewal(presence) < self.duration

    def clear(self, batch: str) -> None:
        """Remove the remaining lease files of a finished batch."""
        for generation in _generations(self.folder, batch):
            with suppress(IsADirectoryError):  # not a lease, harmless
                _file(self.folder, batch, generation).unlink(missing_ok=True)

    def owner(self, batch: str) -> Process | None:
        """The process that has a lease on a batch, None if it is free."""
        latest = max(_generations(self.folder, batch), default=None)
        return None if latest is None else self._alive(_file(self.folder, batch, latest))

    def seconds_since_renewal(self, batch: str) -> float:
        """Seconds since the last renewal of a batch's lease. Clocks of two machines may differ: for display only."""
        latest = max(_generations(self.folder, batch), default=None)
        state = None if latest is None else _read_lease(_file(self.folder, batch, latest))
        return 0.0 if state is None else time.time() - state[1].st_mtime

    def _create_all(self, batch: str) -> list[Lease]:
        """Leases on a batch and on those that share problems with it; none if another process has one."""
        make_folder(self.folder)
        names, leases = [batch, *self._overlapping(batch)], list[Lease]()
        if any(self.owner(name) is not None for name in names):
            return leases
        for name in names:
            if (lease := self._create(name)) is None:
                break
            leases.append(lease)
        # If two processes create leases on such batches at the same time, at least the later one sees the other.
        if len(leases) < len(names) or any(self.owner(name) is not None for name in self._overlapping(batch)):
            _release(leases)
            leases.clear()
        return leases

    def _overlapping(self, batch: str) -> list[str]:
        """The other batches with leases that share problems with a batch."""
        names = {path.name.rpartition(".")[0] for path in self.folder.glob("*.*")} - {batch}
        return sorted(name for name in names if batches_overlap(name, batch))

    def _create(self, batch: str) -> Lease | None:
        latest = max(_generations(self.folder, batch), default=0)
        if latest and self._alive(_file(self.folder, batch, latest)):
            return None
        lease = Lease(self.folder, batch, latest + 1)
        with wrap_write_errors(lease.path):
            try:
                file = open(lease.path, "x")
            except FileExistsError:  # another process was faster
                return None
            try:
                with file:
                    file.write(json.dumps(asdict(self.process)))  # in one write: a reader sees nothing or everything
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:  # a full disk
                lease.path.unlink(missing_ok=True)
                raise
        return lease

    def _alive(self, path: Path) -> Process | None:
        """The owner of a lease if the lease is still valid."""
        state = _read_lease(path)
        if state is None:
            return None
        text, now = state[0], (state[0], state[1].st_mtime_ns)
        before, since = self._seen.get(path, (None, 0.0))
        if before != now:
            self._seen[path] = now, self.clock()
        elif self.clock() - since > self.duration:
            return None
        owner = _owner(text)
        return None if owner.has_ended(self.process) else owner

    def _renew(self, leases: Sequence[Lease], ended: threading.Event) -> None:
        while not ended.wait(self.duration / RENEWALS_PER_TIMEOUT):
            for lease in leases:
                with suppress(OSError):  # lost, or the file system is not available for a moment
                    os.utime(lease.path)


def _release(leases: Sequence[Lease]) -> None:
    for lease in leases:
        with suppress(OSError):  # the file system cannot be written any more: the lease ends by its duration
            lease.path.unlink(missing_ok=True)


def _file(folder: Path, batch: str, generation: int) -> Path:
    return folder / f"{batch}.{generation}"


def _generations(folder: Path, batch: str) -> list[int]:
    endings = (path.name.rpartition(".")[2] for path in folder.glob(f"{batch}.*"))
    return [int(ending) for ending in endings if re.fullmatch("[0-9]{1,18}", ending)]


def _read_lease(path: Path) -> tuple[bytes, os.stat_result] | None:
    """The content of a lease, empty if it cannot be read, and the state of its file; None if there is none."""
    try:
        # Opening a file makes a network file system refresh its state.
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


def _owner(text: bytes) -> Process:
    """The process that a lease names."""
    try:
        return TypeAdapter(Process).validate_json(text, strict=True)
    except ValueError:
        return UNKNOWN_OWNER
