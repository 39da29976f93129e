"""Hand a run, or a sweep, to a cluster's queue and look at it later. Returns at once.

    python -m runner.submit -m task=uvce classifier=planted_clean,planted_shortcut limit=64 submit.workers=8
    python -m runner.submit status
    python -m runner.submit collect

Everything but `submit.<key>=` is what run.py is given; conf/submit.yaml has these keys. The jobs are all the same: each
does whatever batch of whatever run no other holds, so any number of them may come, go and be killed. `status` and
`collect` take `submission=<folder>`, else the latest, and `status problems=true` names every problem.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import submitit
import torch
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError
from rich.console import Console

from runner.files import write
from runner.overview import collect, show
from runner.run import BAD_INPUT, DONE, FAILED
from runner.schema import check_settings
from runner.settings import SubmitSettings
from runner.submission import FILE, Submission, latest, read_submission
from runner.types import UserError, first_line
from runner.worker import Job

SETTINGS = Path(__file__).resolve().parent.parent / "conf" / "submit.yaml"
WIDTH = 160  # letters of a table that goes to a file
UNLIMITED = 10**6  # minutes; nobody would put a local job back into a queue


def settings_of(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The settings of the jobs, and the words that are run.py's. Raises UserError for what does not fit."""
    own = [word.removeprefix("submit.") for word in words if word.startswith("submit.")]
    defaults = OmegaConf.load(SETTINGS)
    OmegaConf.set_struct(defaults, True)
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.merge(defaults, OmegaConf.from_dotlist(own)))
    except (ConfigKeyError, ValidationError) as error:
        allowed = ", ".join(f"submit.{key}" for key in map(str, defaults))
        raise UserError(f"submit: {first_line(error)}; allowed are {allowed}") from error
    settings = check_settings(SubmitSettings, settings, "submit.")
    return settings, [word for word in words if not word.startswith("submit.")]


def outputs_of(words: Sequence[str]) -> Path:
    """Where the runs will lie."""
    given = [word.partition("=")[2] for word in words if word.startswith("outputs=")]
    return Path(given[-1] if given else "outputs")


def parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as submitit names them, for SLURM."""
    passed = {key: settings[key] for key in ("partition", "account", "qos", "constraint") if settings[key] is not None}
    return {
        "name": settings["name"],
        "timeout_min": settings["minutes"],
        "mem_gb": settings["gb"],
        "cpus_per_task": settings["cpus"],
        "slurm_signal_delay_s": settings["signal"],
        "slurm_array_parallelism": settings["parallel"] or settings["workers"],
        "slurm_setup": _setup(settings),
        **({"gpus_per_node": settings["gpus"]} if settings["gpus"] else {}),
        **{f"slurm_{key}": value for key, value in passed.items()},
    }


def _setup(settings: Mapping[str, Any]) -> list[str]:
    """Shell lines before a job. Torch would take all cores that it sees."""
    return [f"export OMP_NUM_THREADS={settings['cpus']}", *settings["setup"]]


def submit(words: Sequence[str]) -> Submission:
    """Put the jobs into the queue; returns what was submitted, noted in a folder of its own below the outputs.

    Raises UserError for bad settings, and where there is no queue.
    """
    settings, own = settings_of(words)
    if settings["cluster"] == "slurm" and not shutil.which("sbatch"):
        raise UserError("submit.cluster=slurm: this machine has no sbatch; submit.cluster=local uses its own cores")
    home = outputs_of(own).resolve() / "submissions"
    logs = home / "logs" / "%j"
    job = Job(Path.cwd(), tuple(own), home)
    if settings["cluster"] == "slurm":
        executor = submitit.AutoExecutor(logs, cluster="slurm", slurm_max_num_timeout=settings["requeues"])
        executor.update_parameters(**parameters(settings))
        with executor.batch():
            jobs = [executor.submit(job) for _ in range(settings["workers"])]
    else:
        jobs = [_local(job, logs, settings, i) for i in range(settings["workers"])]
    first = jobs[0].job_id.partition("_")[0]
    submission = Submission(home / first, settings["cluster"], [job.job_id for job in jobs], own, os.getcwd())
    write(submission.folder / FILE, json.dumps(asdict(submission), indent=1, default=str))
    return submission


def _local(job: Job, logs: Path, settings: Mapping[str, Any], i: int) -> submitit.Job[None]:
    """A process of this machine, with a GPU of its own where there is one."""
    gpus = torch.cuda.device_count()
    executor = submitit.AutoExecutor(logs, cluster="local")
    executor.update_parameters(
        timeout_min=UNLIMITED, gpus_per_node=min(gpus, 1), local_setup=_setup(settings),
        **({"visible_gpus": (i % gpus,)} if gpus else {}),
    )  # fmt: skip
    return executor.submit(job)


def queue(submission: Submission) -> dict[str, str]:
    """What SLURM says of the jobs that it still has, by their names: PENDING, RUNNING …

    Raises UserError if it cannot be asked.
    """
    if submission.cluster != "slurm":
        return {}
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={submission.folder.name}"]
    try:
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise UserError("squeue: not on this machine; ask where SLURM's submissions are made") from error
    except subprocess.CalledProcessError as error:
        if "Invalid job id" in error.stderr:  # it forgets jobs some minutes after their end
            return {}
        raise UserError(error.stderr.strip().splitlines()[0]) from error
    return dict(line.split(maxsplit=1) for line in said.splitlines())


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    command = arguments[0] if arguments and arguments[0] in ("status", "collect") else "submit"
    try:
        if command == "submit":
            submission = submit(arguments)
            print(f"{len(submission.jobs)} jobs: {', '.join(submission.jobs)}\nsubmission: {submission.folder}")
            return DONE
        asked = dict(word.partition("=")[::2] for word in arguments[1:])
        if unknown := set(asked) - {"submission", "problems", "outputs"}:
            raise UserError(f"{command} {unknown.pop()}: allowed are submission=, outputs= and problems=true")
        outputs = Path(asked.get("outputs", "outputs"))
        submission = read_submission(Path(asked["submission"]) if "submission" in asked else latest(outputs))
        if command == "collect":
            print(f"page: {collect(submission)}")
            return DONE
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        failed = show(submission, queue(submission), asked.get("problems") == "true", console)
        return FAILED if failed else DONE
    except UserError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
