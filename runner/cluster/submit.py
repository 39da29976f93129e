"""Hand a run, or a sweep, to a cluster's queue and look at it later. Returns at once.

    python scripts/submit.py -m task=uvce classifier=planted_clean,planted_shortcut limit=64 submit.workers=8
    python scripts/submit.py status
    python scripts/submit.py collect

Everything but `submit.<key>=` is what run.py is given; conf/submit.yaml has these keys. The jobs are all the same: each
does whatever batch of whatever run no other holds, so any number of them may come, go and be killed. `status` and
`collect` take `submission=<folder>`, else the latest, and `status problems=true` names every problem.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import submitit
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rich.console import Console
from submitit.core.utils import FailedJobError

from classifier_lens.runner.cluster.job_status import SUBMISSION_FILE, Submission, latest_submission, read_submission
from classifier_lens.runner.cluster.submit_settings import check_single_line, parse_override, read_settings
from classifier_lens.runner.cluster.worker import Job
from classifier_lens.runner.configuration.compose import compose_config, parse_sweep
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.report.overview import print_status, write_overview
from classifier_lens.runner.run import BAD_INPUT, DONE, FAILED, check_output_folders
from classifier_lens.runner.types import UserError, first_line
from classifier_lens.tasks.prompts.target_rules import TARGET_RULES, resolve_class_name

TABLE_WIDTH = 160  # letters of a table that goes to a file
NO_TIME_LIMIT = 10**6  # minutes; nobody would put a local job back into a queue


def check_command(words: Sequence[str]) -> Path:
    """Where the runs of a command will lie. Raises UserError for words with which one of them could not begin: each
    value of a sweep is tried once."""
    plain, choices = parse_sweep(words)
    first = [options[0] for options in choices]
    others = [[*first[:i], other, *first[i + 1 :]] for i, options in enumerate(choices) for other in options[1:]]
    configs = [compose_config([*plain, *job]) for job in (first, *others)]
    known: dict[str, Sequence[str] | None] = {}
    for config in configs:
        _check_classes(config, known)
    outputs = Path(configs[0]["outputs"])
    check_output_folders(configs[0])
    check_single_line("outputs", str(outputs.resolve()))
    if "%" in str(outputs.resolve()):
        raise UserError(f"outputs={outputs}: allowed are paths without %, which SLURM takes for a pattern")
    return outputs


def _check_classes(config: Mapping[str, Any], known: dict[str, Sequence[str] | None]) -> None:
    """Raise UserError for a class that the task names and the classifier does not know. known: the labels of
    classifiers that were loaded before, by their settings; others are added."""
    named = {f"task.{key}": config["task"].get(key) for key in ("target", "classes")}
    listed = {key: [value] if isinstance(value, str) else list(value or ()) for key, value in named.items()}
    asked = [
        (key, name) for key, names in listed.items() for name in names if not (name in TARGET_RULES or ":" in name)
    ]
    if not asked:
        return
    node = json.dumps(config["classifier"], sort_keys=True)
    labels = known[node] if node in known else known.setdefault(node, _labels(config["classifier"]))
    if labels is not None:
        for key, name in asked:
            resolve_class_name(key, name, labels)


def _labels(node: Mapping[str, Any]) -> Sequence[str] | None:
    """A classifier's labels; None, and a line that leaves it to the jobs, where it cannot be loaded on this machine."""
    try:
        labels: Sequence[str] = instantiate(node, _convert_="all").labels
    except InstantiationException as error:
        print(f"classes are not checked here: {first_line(error.__cause__ or error)}", file=sys.stderr)
        return None
    return labels


def slurm_parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as submitit names them, for SLURM."""
    passed = {key: settings[key] for key in ("partition", "account", "qos", "constraint") if settings[key] is not None}
    return {
        "name": settings["name"],
        "timeout_min": settings["minutes"],
        "mem_gb": settings["mem_gb"],
        "cpus_per_task": settings["cpus"],
        "slurm_signal_delay_s": settings["signal"],
        "slurm_array_parallelism": settings["max_parallel"] or settings["workers"],
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
    settings, own = read_settings(words)
    missing = [name for name in ("sbatch", "srun") if not shutil.which(name)]
    if settings["cluster"] == "slurm" and missing:
        raise UserError(
            f"submit.cluster=slurm: this machine has no {missing[0]}; submit.cluster=local uses its own cores"
        )
    home = check_command(own).resolve() / "submissions"
    logs = home / "logs" / "%j"
    job = Job(Path.cwd(), tuple(own), home)
    if settings["cluster"] == "slurm":
        executor = submitit.AutoExecutor(logs, cluster="slurm", slurm_max_num_timeout=settings["max_requeues"])
        executor.update_parameters(**slurm_parameters(settings))
        try:
            with redirect_stderr(StringIO()), executor.batch():  # submitit repeats what sbatch says
                jobs = [executor.submit(job) for _ in range(settings["workers"])]
        except FailedJobError as error:
            raise UserError(f"sbatch refused: {_said_by_slurm(str(error))}") from error
    else:
        jobs = [_local(job, logs, settings, i) for i in range(settings["workers"])]
    first = jobs[0].job_id.partition("_")[0]
    submission = Submission(home / first, settings["cluster"], [job.job_id for job in jobs], own, os.getcwd())
    write_durable(submission.folder / SUBMISSION_FILE, json.dumps(asdict(submission), indent=1, default=str))
    return submission


def _said_by_slurm(text: str) -> str:
    """SLURM's own sentence within what submitit says of a command that failed."""
    said = re.findall(r"sbatch: error: (.+)", text)
    return said[-1] if said else first_line(ValueError(text))


def _local(job: Job, logs: Path, settings: Mapping[str, Any], i: int) -> submitit.Job[None]:
    """A process of this machine, with a GPU of its own where there is one."""
    gpus = torch.cuda.device_count()
    executor = submitit.AutoExecutor(logs, cluster="local")
    executor.update_parameters(
        timeout_min=NO_TIME_LIMIT, gpus_per_node=min(gpus, 1), local_setup=_setup(settings),
        **({"visible_gpus": (i % gpus,)} if gpus else {}),
    )  # fmt: skip
    return executor.submit(job)


def queued_jobs(submission: Submission) -> dict[str, str]:
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
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return DONE
    command = arguments[0] if arguments and arguments[0] in ("status", "collect") else "submit"
    try:
        if command == "submit":
            submission = submit(arguments)
            print(f"{len(submission.jobs)} jobs: {', '.join(submission.jobs)}\nsubmission: {submission.folder}")
            return DONE
        asked = dict(parse_override(word) for word in arguments[1:])
        if unknown := set(asked) - {"submission", "problems", "outputs"}:
            raise UserError(f"{command} {unknown.pop()}: allowed are submission=, outputs= and problems=true")
        outputs = Path(str(asked.get("outputs", "outputs")))
        submission = read_submission(
            Path(str(asked["submission"])) if "submission" in asked else latest_submission(outputs)
        )
        if command == "collect":
            print(f"page: {write_overview(submission)}")
            return DONE
        console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
        failed = print_status(submission, queued_jobs(submission), asked.get("problems") is True, console)
        return FAILED if failed else DONE
    except UserError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
