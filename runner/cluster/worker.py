"""What a job of a cluster's queue does: run.py's work, until nothing of it is left or the queue takes the job back."""

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
    """run.py with `words`, in the folder where it was submitted; its exit code is noted among the `submissions`.

    It first does, of all runs of a sweep, what no other job holds, and then waits for what is left.
    """

    folder: Path
    words: tuple[str, ...]
    submissions: Path

    def __call__(self) -> None:
        """Raises SystemExit with run.py's exit code unless that is 0, so that the queue sees it, too."""
        os.chdir(self.folder)
        noted = exit_code_file(self.submissions, str(Process.current().job))
        noted.unlink(missing_ok=True)
        code = call_run_py([*self.words, "lease.wait_for_others=false"])
        if code == PENDING:
            code = call_run_py(self.words)
        write_durable(noted, str(code))
        if code != DONE:
            sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit puts back into the queue: the same, since all that is done lies in the runs' folders."""
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
