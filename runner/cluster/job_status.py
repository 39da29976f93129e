"""What was submitted to a queue and how far it is, by the files that its jobs leave: queues forget."""

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
from classifier_lens.runner.types import UserError

SUBMISSION_FILE = "submission.json"
STATES = ("done", "failed", "running", "pending")  # of a problem
QUEUE_STATES = {
    "PENDING": "waiting",
    "REQUEUED": "waiting",
    "SUSPENDED": "suspended",
}  # SLURM's words for a job that is not at work


@dataclass(frozen=True)
class Submission:
    """Jobs that were put into a queue together. folder: where they are noted; jobs: the cluster's names of them;
    overrides: what run.py is given; working_folder: the folder it is run in."""

    folder: Path
    cluster: str
    jobs: list[str]
    overrides: list[str]
    working_folder: str

    @property
    def outputs(self) -> Path:
        return self.folder.parent.parent

    def job_state(self, job: str, queued: Mapping[str, str]) -> str:
        """How a job fares, given the queue's words for those that it still has."""
        if job in queued:
            return QUEUE_STATES.get(queued[job], "running")
        path = exit_code_file(self.folder.parent, job)
        if code := re.fullmatch("-?[0-9]{1,9}", (try_read_text(path) or "").strip()):
            return "done" if int(code[0]) == 0 else f"failed, exit code {int(code[0])}"
        if self.cluster == "local" and is_running(int(job)):
            return "running"
        return "ended without a word"

    def runs(self) -> list[RunStatus]:
        """The runs that a job of it has worked at, in the order of their folders; a damaged one is left out, and
        told."""
        found = {path.parent.parent for path in self.outputs.glob("*/*/*/attempts/*.json") if self._own(path)}
        return [run for run in map(RunStatus, sorted(found)) if run.is_readable()]

    def _own(self, attempt: Path) -> bool:
        try:
            job = parse_object(read(attempt)).get("job")
        except (FileNotFoundError, DamagedFileError):
            return False
        return isinstance(job, str) and job.partition(".")[0] in self.jobs


def exit_code_file(submissions: Path, job: str) -> Path:
    """Where a job notes its exit code."""
    return submissions / "codes" / job


@dataclass(frozen=True)
class RunStatus:
    """A run's folder, whatever its state."""

    folder: Path

    @property
    def name(self) -> str:
        """Task, generator and classifier, and the key."""
        return "/".join(self.folder.parts[-3:])

    def is_readable(self) -> bool:
        """Whether its configuration and its summary can be read; says so where they cannot."""
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
        """Of each problem that is asked for one of `STATES`, and why it failed or who works at it."""
        names = (try_read_text(self.folder / "problems.txt") or "").splitlines()
        held = self._held(len(names))
        found = {}
        for i, name in enumerate(names):
            place = self.folder / "images" / name
            if (place / "result.json").exists():
                found[name] = ("done", "")
            elif (failure := _failure(place)) is not None:
                found[name] = ("failed", failure)
            else:
                found[name] = ("running", held[i]) if i in held else ("pending", "")
        return found

    def count(self, state: str) -> int:
        """How many problems are in a state."""
        return sum(own == state for own, _ in self.problem_states.values())

    def _held(self, count: int) -> dict[int, str]:
        """Who works at the problems, by their positions."""
        claims = Leases(self.folder / "claims", float(self.config["lease"]["duration"]), Process.current())
        held: dict[int, str] = {}
        for batch in {path.stem for path in claims.folder.glob("problems-*.*")}:
            if (holder := claims.owner(batch)) is not None and claims.seconds_since_renewal(batch) < claims.duration:
                held |= dict.fromkeys(batch_span(batch)[:count], holder.name)
        return {i: name for i, name in held.items() if i < count}


def _failure(place: Path) -> str | None:
    """Why a problem failed, None where nothing says so."""
    try:
        return str(parse_failure(read(place / "failure.json"), place.name)["error"])
    except (FileNotFoundError, DamagedFileError):
        return None


def read_submission(folder: Path) -> Submission:
    """What was noted in a submission's folder. Raises UserError if it is none."""
    path = folder / SUBMISSION_FILE
    if not path.is_file():
        raise UserError(
            f"submission={folder}: {path} is not there; give a folder that `python scripts/submit.py` printed"
        )
    noted = _noted(path)
    kinds = {"cluster": str, "jobs": list, "overrides": list, "working_folder": str}
    if wrong := [key for key, kind in kinds.items() if not isinstance(noted.get(key), kind)]:
        raise UserError(f"{path}: has no usable {wrong[0]}; submit again, what is done stays")
    if not noted["jobs"] or not all(isinstance(value, str) for value in (*noted["jobs"], *noted["overrides"])):
        raise UserError(f"{path}: its jobs and words are no texts; submit again, what is done stays")
    return Submission(folder.resolve(), noted["cluster"], noted["jobs"], noted["overrides"], noted["working_folder"])


def _noted(path: Path) -> Mapping[str, Any]:
    """A submission's file. Raises UserError if it is damaged."""
    try:
        return parse_object(read(path))
    except DamagedFileError as error:
        raise UserError(f"{path}: {error}; submit again, what is done stays") from error


def latest_submission(outputs: Path) -> Path:
    """The folder of the submission that came last. Raises UserError if there is none."""
    files = sorted(outputs.glob(f"submissions/*/{SUBMISSION_FILE}"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UserError(
            f"outputs={outputs}: nothing was submitted there; `python scripts/submit.py <words of run.py>` does"
        )
    return files[-1].parent
