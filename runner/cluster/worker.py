"""The job that a cluster runs: run.py until everything is done, or until the cluster requeues the job."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import DelayedSubmission

from classifier_lens.runner.cli import main
from classifier_lens.runner.cluster.job_status import exit_code_file
from classifier_lens.runner.cluster.leases import Process
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.run import DONE, PENDING


@dataclass(frozen=True)
class Job:
    """run.py with `words` in `folder`, where it was submitted; its exit code is written into `submissions`.

    It first solves the batches of all runs of a sweep that no other job holds, and then waits for the others.
    """

    folder: Path
    words: tuple[str, ...]
    submissions: Path

    def __call__(self) -> None:
        """Run the job. Raises SystemExit with run.py's exit code unless it is 0, so that the cluster sees it, too."""
        os.chdir(self.folder)
        code_file = exit_code_file(self.submissions, str(Process.current().job))
        code_file.unlink(missing_ok=True)
        code = call_run_py([*self.words, "lease.wait_for_others=false"])
        if code == PENDING:
            code = call_run_py(self.words)
        write_durable(code_file, str(code))
        if code != DONE:
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """The job that submitit requeues: the same one, since all results are in the run folders."""
        return DelayedSubmission(self)


def call_run_py(words: Sequence[str]) -> int:
    """`python run.py <words>` in this process; returns its exit code."""
    argv = sys.argv
    try:
        sys.argv = ["run.py", *words]
        return main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = argv
