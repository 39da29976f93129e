"""The state of submitted jobs, from the files that they leave, since queues forget finished jobs."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from classifier_lens.runner.cluster.leases import Leases, Process, is_running
from classifier_lens.runner.files.atomic import DamagedFileError, read, try_read_text
from classifier_lens.runner.results.batch_names import batch_span
from classifier_lens.runner.results.integrity import parse_failure, parse_object
from classifier_lens.runner.results.reader import read_config, read_object, read_results
from classifier_lens.runner.results.run_folder import LEASE_FOLDER
from classifier_lens.runner.types import UserError

SUBMISSION_FILE = "submission.json"
RESUBMIT_HINT = "submit again, finished results remain"
STATES = ("done", "failed", "running", "pending")  # of a problem
QUEUE_STATES = {"PENDING": "waiting", "REQUEUED": "waiting", "SUSPENDED": "suspended"}  # SLURM states of idle jobs


@dataclass(frozen=True)
class Submission:
    """Jobs that were submitted together. folder: of the submission's record; jobs: their ids in the cluster; overrides:
    of run.py; working_folder: of run.py."""

    folder: Path
    cluster: str
    jobs: list[str]
    overrides: list[str]
    working_folder: str

    @property
    def outputs(self) -> Path:
        return self.folder.parent.parent

    def job_state(self, job: str, queued: Mapping[str, str]) -> str:
        """The state of a job. queued: the queue's state of every job that it still has."""
        if job in queued:
            return QUEUE_STATES.get(queued[job], "running")
        path = exit_code_file(self.folder.parent, job)
        if code := re.fullmatch("-?[0-9]{1,9}", (try_read_text(path) or "").strip()):
            return "done" if int(code[0]) == 0 else f"failed, exit code {int(code[0])}"
        if self.cluster == "local" and is_running(int(job)):
            return "running"
        return "ended without an exit code"

    def runs(self) -> list[RunStatus]:
        """The runs of its jobs, in the order of their folders. A damaged run is left out, and a line says so."""
        attempts = self.outputs.glob("*/*/*/attempts/*.json")
        folders = {attempt.parent.parent for attempt in attempts if self._has_attempt(attempt)}
        return [run for run in map(RunStatus, sorted(folders)) if run.is_readable()]

    def _has_attempt(self, attempt: Path) -> bool:
        try:
            job = parse_object(read(attempt)).get("job")
        except (FileNotFoundError, DamagedFileError):
            return False
        return isinstance(job, str) and job.partition(".")[0] in self.jobs


def exit_code_file(submissions: Path, job: str) -> Path:
    """The file into which a job writes its exit code."""
    return submissions / "codes" / job


@dataclass(frozen=True)
class RunStatus:
    """A run folder in any state."""

    folder: Path

    @property
    def name(self) -> str:
        """Task, generator, classifier and key."""
        return "/".join(self.folder.parts[-3:])

    def is_readable(self) -> bool:
        """Whether its configuration and its summary can be read; prints the error if not."""
        try:
            return bool(self.config) and self.summary is not None
        except UserError as error:
            print(error, file=sys.stderr)
            return False

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return read_config(self.folder / "config.yaml")

    @cached_property
    def records(self) -> list[Mapping[str, Any]]:
        return list(read_results(self.folder / "results.jsonl"))

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        return read_object(self.folder / "summary.json")

    @cached_property
    def problem_states(self) -> dict[str, tuple[str, str]]:
        """The state of each problem, one of `STATES`, with the reason of a failure or the process that works on it."""
        names = (try_read_text(self.folder / "problems.txt") or "").splitlines()
        owners = self._owners(len(names))
        states = {}
        for i, name in enumerate(names):
            folder = self.folder / "images" / name
            if (folder / "result.json").exists():
                states[name] = ("done", "")
            elif (failure := _failure(folder)) is not None:
                states[name] = ("failed", failure)
            else:
                states[name] = ("running", owners[i]) if i in owners else ("pending", "")
        return states

    def count(self, state: str) -> int:
        """The number of problems in a state."""
        return sum(other == state for other, _ in self.problem_states.values())

    def _owners(self, count: int) -> dict[int, str]:
        """The process that works on a problem, by the problem's position."""
        leases = Leases(self.folder / LEASE_FOLDER, float(self.config["lease"]["duration"]), Process.current())
        owners: dict[int, str] = {}
        for batch in {path.stem for path in leases.folder.glob("problems-*.*")}:
            if (owner := leases.owner(batch)) is not None and leases.seconds_since_renewal(batch) < leases.duration:
                owners |= dict.fromkeys(batch_span(batch)[:count], owner.name)
        return {i: name for i, name in owners.items() if i < count}


def _failure(folder: Path) -> str | None:
    """The error of a failed problem, None if there is no record of a failure."""
    try:
        return str(parse_failure(read(folder / "failure.json"), folder.name)["error"])
    except (FileNotFoundError, DamagedFileError):
        return None


def read_submission(folder: Path) -> Submission:
    """The submission that is recorded in a folder. Raises UserError if there is none."""
    path = folder / SUBMISSION_FILE
    if not path.is_file():
        raise UserError(
            f"submission={folder}: {path} does not exist; give a folder that `python scripts/submit.py` printed"
        )
    record = _read_record(path)
    kinds = {"cluster": str, "jobs": list, "overrides": list, "working_folder": str}
    if wrong := [key for key, kind in kinds.items() if not isinstance(record.get(key), kind)]:
        raise UserError(f"{path}: has no valid {wrong[0]}; {RESUBMIT_HINT}")
    if not record["jobs"] or not all(isinstance(value, str) for value in (*record["jobs"], *record["overrides"])):
        raise UserError(f"{path}: its jobs and overrides are not texts; {RESUBMIT_HINT}")
    return Submission(
        folder.resolve(), record["cluster"], record["jobs"], record["overrides"], record["working_folder"]
    )


def _read_record(path: Path) -> Mapping[str, Any]:
    """The content of a submission's file. Raises UserError if it is damaged."""
    try:
        return parse_object(read(path))
    except DamagedFileError as error:
        raise UserError(f"{path}: {error}; {RESUBMIT_HINT}") from error


def latest_submission(outputs: Path) -> Path:
    """The folder of the latest submission. Raises UserError if there is none."""
    files = sorted(outputs.glob(f"submissions/*/{SUBMISSION_FILE}"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UserError(
            f"outputs={outputs}: has no submission; submit one with `python scripts/submit.py <overrides of run.py>`"
        )
    return files[-1].parent
