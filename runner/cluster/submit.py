"""Submit a run or a sweep to a cluster and inspect it later. The command returns at once.

    python scripts/submit.py -m task=uvce classifier=planted_clean,planted_shortcut limit=64 submit.workers=8
    python scripts/submit.py status
    python scripts/submit.py collect

All words except `submit.<key>=` are overrides of run.py; conf/submit.yaml describes these keys. All jobs are equal:
each solves any batch of any run that no other job holds, so that jobs may start, end and be killed at any time.
`status` and `collect` use the latest submission or `submission=<folder>`; `status problems=true` lists every problem.
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
from classifier_lens.runner.report_command import EXPERIMENT
from classifier_lens.runner.run import BAD_INPUT, DONE, FAILED, check_output_folders
from classifier_lens.runner.types import UserError, first_line
from classifier_lens.tasks.prompts.target_rules import TARGET_RULES, resolve_class_name

TABLE_WIDTH = 160  # characters, of a table in a file
NO_TIME_LIMIT = 10**6  # minutes; nothing would requeue a local job


def check_command(words: Sequence[str]) -> Path:
    """The output folder of a command's runs. Raises UserError if one of them could not start: each value of a sweep is
    composed once."""
    if EXPERIMENT in words:
        raise UserError(
            f"{EXPERIMENT}: its later runs depend on the first one; submit one of them, such as "
            f"{EXPERIMENT}/concept_effect, or start run.py"
        )
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
        raise UserError(f"outputs={outputs}: allowed are paths without %, which SLURM would expand as a pattern")
    return outputs


def _check_classes(config: Mapping[str, Any], known: dict[str, Sequence[str] | None]) -> None:
    """Raise UserError for a class of the task that the classifier does not have. known: labels of the classifiers that
    are loaded already, by their settings; others are added."""
    settings = {f"task.{key}": config["task"].get(key) for key in ("target", "classes")}
    names = {key: [value] if isinstance(value, str) else list(value or ()) for key, value in settings.items()}
    classes = [
        (key, name) for key, listed in names.items() for name in listed if not (name in TARGET_RULES or ":" in name)
    ]
    if not classes:
        return
    node = json.dumps(config["classifier"], sort_keys=True)
    labels = known[node] if node in known else known.setdefault(node, _labels(config["classifier"]))
    if labels is not None:
        for key, name in classes:
            resolve_class_name(key, name, labels)


def _labels(node: Mapping[str, Any]) -> Sequence[str] | None:
    """The labels of a classifier; None, after a line on the console, if it cannot be loaded on this machine."""
    try:
        labels: Sequence[str] = instantiate(node, _convert_="all").labels
    except InstantiationException as error:
        print(
            f"class names are checked by the jobs only, since the classifier cannot be loaded here: "
            f"{first_line(error.__cause__ or error)}",
            file=sys.stderr,
        )
        return None
    return labels


def slurm_parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by submitit's names, for SLURM."""
    optional = ("partition", "account", "qos", "constraint")
    of_slurm = {f"slurm_{key}": settings[key] for key in optional if settings[key] is not None}
    return {
        "name": settings["name"],
        "timeout_min": settings["minutes"],
        "mem_gb": settings["mem_gb"],
        "cpus_per_task": settings["cpus"],
        "slurm_signal_delay_s": settings["signal"],
        "slurm_array_parallelism": settings["max_parallel"] or settings["workers"],
        "slurm_setup": _setup(settings),
        **({"gpus_per_node": settings["gpus"]} if settings["gpus"] else {}),
        **of_slurm,
    }


def _setup(settings: Mapping[str, Any]) -> list[str]:
    """Shell lines before a job. Without the variable, torch would use all visible cores."""
    return [f"export OMP_NUM_THREADS={settings['cpus']}", *settings["setup"]]


def submit(words: Sequence[str]) -> Submission:
    """Submit the jobs; returns the submission, which is recorded in its folder in the outputs.

    Raises UserError for invalid settings, and without a cluster.
    """
    settings, overrides = read_settings(words)
    missing = [name for name in ("sbatch", "srun") if not shutil.which(name)]
    if settings["cluster"] == "slurm" and missing:
        raise UserError(
            f"submit.cluster=slurm: this machine has no {missing[0]}; submit.cluster=local starts processes here"
        )
    folder = check_command(overrides).resolve() / "submissions"
    logs = folder / "logs" / "%j"
    job = Job(Path.cwd(), tuple(overrides), folder)
    if settings["cluster"] == "slurm":
        executor = submitit.AutoExecutor(logs, cluster="slurm", slurm_max_num_timeout=settings["max_requeues"])
        executor.update_parameters(**slurm_parameters(settings))
        try:
            with redirect_stderr(StringIO()), executor.batch():  # submitit repeats the messages of sbatch
                jobs = [executor.submit(job) for _ in range(settings["workers"])]
        except FailedJobError as error:
            raise UserError(f"sbatch rejected the jobs: {_slurm_message(str(error))}") from error
    else:
        jobs = [_local(job, logs, settings, i) for i in range(settings["workers"])]
    first = jobs[0].job_id.partition("_")[0]
    submission = Submission(folder / first, settings["cluster"], [job.job_id for job in jobs], overrides, os.getcwd())
    write_durable(submission.folder / SUBMISSION_FILE, json.dumps(asdict(submission), indent=1, default=str))
    return submission


def _slurm_message(text: str) -> str:
    """The message of sbatch within submitit's message about a failed command."""
    messages = re.findall(r"sbatch: error: (.+)", text)
    return messages[-1] if messages else first_line(ValueError(text))


def _local(job: Job, logs: Path, settings: Mapping[str, Any], i: int) -> submitit.Job[None]:
    """A process on this machine, with its own GPU if there are GPUs."""
    gpus = torch.cuda.device_count()
    executor = submitit.AutoExecutor(logs, cluster="local")
    executor.update_parameters(
        timeout_min=NO_TIME_LIMIT, gpus_per_node=min(gpus, 1), local_setup=_setup(settings),
        **({"visible_gpus": (i % gpus,)} if gpus else {}),
    )  # fmt: skip
    return executor.submit(job)


def queued_jobs(submission: Submission) -> dict[str, str]:
    """SLURM's state of each job that is still in the queue, by job id: PENDING, RUNNING …

    Raises UserError if squeue fails.
    """
    if submission.cluster != "slurm":
        return {}
    command = ["squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={submission.folder.name}"]
    try:
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise UserError("squeue: not on this machine; run the command where the jobs were submitted") from error
    except subprocess.CalledProcessError as error:
        if "Invalid job id" in error.stderr:  # SLURM forgets jobs some minutes after their end
            return {}
        raise UserError(error.stderr.strip().splitlines()[0]) from error
    return dict(line.split(maxsplit=1) for line in output.splitlines())


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
        options = dict(parse_override(word) for word in arguments[1:])
        if unknown := set(options) - {"submission", "problems", "outputs"}:
            raise UserError(f"{command} {unknown.pop()}: allowed are submission=, outputs= and problems=true")
        outputs = Path(str(options.get("outputs", "outputs")))
        submission = read_submission(
            Path(str(options["submission"])) if "submission" in options else latest_submission(outputs)
        )
        if command == "collect":
            print(f"page: {write_overview(submission)}")
            return DONE
        console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
        failed = print_status(submission, queued_jobs(submission), options.get("problems") is True, console)
        return FAILED if failed else DONE
    except UserError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
