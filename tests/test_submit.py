"""What is handed to a queue, and what is told of it later."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import sys
import time
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from classifier_lens.runner.cluster import job_status, submit
from classifier_lens.runner.cluster.job_status import (
    RunStatus,
    Submission,
    exit_code_file,
    latest_submission,
    read_submission,
)
from classifier_lens.runner.cluster.leases import Process
from classifier_lens.runner.cluster.submit_settings import check_single_line
from classifier_lens.runner.cluster.worker import Job, call_run_py
from classifier_lens.runner.configuration.compose import parse_sweep
from classifier_lens.runner.files.atomic import write_durable
from classifier_lens.runner.report import overview
from classifier_lens.runner.results.batch_names import batch_name
from classifier_lens.runner.results.manifest import Manifest
from classifier_lens.runner.results.run_folder import RunFolder
from classifier_lens.runner.types import UserError
from tests.cli import ROOT, Cli

Capture = pytest.CaptureFixture[str]


# --- what is submitted ---------------------------------------------------------------------------------------


def test_words_are_the_jobs_or_run_pys() -> None:
    settings, words = submit.read_settings(
        ["-m", "seed=0,1", "submit.workers=3", "submit.setup=[module load cuda]", "a=1"]
    )
    assert words == ["-m", "seed=0,1", "a=1"]
    assert (settings["workers"], settings["setup"], settings["minutes"]) == (3, ["module load cuda"], 60)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("submit.worker=3", "submit.worker=3: unknown key; did you mean workers?"),
        ("submit.cluster=pbs", "submit.cluster=pbs: allowed are slurm, local"),
        ("submit.workers=0", "submit.workers=0: allowed are whole numbers from 1"),
        ("submit.workers=1,2", "submit.workers=1,2: cannot be swept"),
        ("submit.name", "submit.name: expected are overrides key=value"),
        ("seed=0,1", "seed=0,1: this value has to be quoted"),
        ("outputs=/dev/null/x", "outputs=/dev/null/x: /dev/null/x/uvce/planted_ddim-planted_clean: cannot be written"),
        ("submit.workers=true", "submit.workers=true: allowed are whole numbers"),
        ("submit.minutes=1.5", "submit.minutes=1.5: allowed are minutes, or a time in SLURM's format"),
        ("submit.minutes=0", "submit.minutes=0: allowed are whole numbers from 1"),
        ("submit.minutes=2", "submit.signal=120: allowed are seconds from 1 to below the time limit of 120"),
        ("submit.gpus=-1", "submit.gpus=-1: allowed are whole numbers from 0"),
        ("submit.max_requeues=x", "submit.max_requeues=x: allowed are whole numbers from 0"),
        ("submit.max_parallel=0", "submit.max_parallel=0: allowed are whole numbers from 1"),
        ("submit.signal=0", "submit.signal=0: allowed are whole numbers from 1"),
        ("submit.setup=date", "submit.setup=date: allowed are lists"),
        ("submit.name=null", "submit.name=null: allowed are texts"),
        ("submit.name=a\ntouch x", "this value has to be quoted"),
        ("submit.partition=potter's", "this value has to be quoted, for example"),
        ("task.target=no-such-class", "task.target=no-such-class: no class of the classifier"),
        ("outputs=a%j", "outputs=a%j: allowed are paths without %"),
    ],
)
def test_what_does_not_fit_ends_in_one_line(word: str, said: str, capfd: Capture, tmp_path: Path) -> None:
    outputs = () if word.startswith("outputs") else (f"outputs={tmp_path}",)
    assert submit.main([word, *outputs, *(() if "cluster" in word else ("submit.cluster=local",))]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "minutes"),
    [("90", 90), ("1:30", 2), ("4:00:00", 240), ("08:00:00", 480), ("1-0", 1440), ("1-02:30", 1590),
     ("2-00:00:01", 2881)],
)  # fmt: skip
def test_a_time_limit_is_read_as_slurm_reads_it(said: str, minutes: int) -> None:
    assert submit.read_settings([f"submit.minutes={said}", "submit.signal=1"])[0]["minutes"] == minutes


@pytest.mark.parametrize("said", ["-1", "4h", "1:2:3:4", "null", "true", "''", "1-", "[3]"])
def test_other_times_are_refused(said: str) -> None:
    with pytest.raises(UserError, match=r"submit\.minutes=.*: allowed are minutes, or a time in SLURM's format"):
        submit.read_settings([f"submit.minutes={said}"])


def test_quoted_values_mean_what_they_mean_to_run_py() -> None:
    settings, words = submit.read_settings(["submit.name='a b'", "submit.setup=['a; b', c]", "outputs='x y'"])
    assert (settings["name"], settings["setup"]) == ("a b", ["a; b", "c"])
    assert submit.check_command(words) == Path("x y")


def test_no_text_becomes_a_line_of_the_batch_script() -> None:
    for text in ("a\ntouch x", "a\rb", "a\x00", " ", "", None, 3):
        with pytest.raises(UserError, match=r"submit\.name=.*allowed is a line of text"):
            check_single_line("submit.name", text)
    check_single_line("submit.setup", "module load\tcuda")


def test_each_value_of_a_sweep_is_tried() -> None:
    assert submit.check_command(["-m", "seed=0,1", "task.target=viaduct,nearest"]) == Path("outputs")
    with pytest.raises(UserError, match=r"task\.target=viadukt: no class"):
        submit.check_command(["-m", "seed=0,1", "task.target=viaduct,viadukt"])


def test_a_pattern_of_options_is_a_sweep() -> None:
    assert parse_sweep(["-m", "sampler=glob(d*)", "seed=0,1"]) == ([], [["sampler=ddim"], ["seed=0", "seed=1"]])
    for word in ("classifier=glob(nope*)", "seed=glob(*)"):
        with pytest.raises(UserError, match=r"no option matches the pattern"):
            submit.check_command(["-m", word])


def test_help_is_shown(capfd: Capture) -> None:
    assert submit.main(["--help"]) == 0 and "submit.workers=8" in capfd.readouterr().out


def test_a_sweeps_classifier_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []

    def labels(node: object) -> list[str]:
        loaded.append(node)
        return ["viaduct", "fireboat"]

    monkeypatch.setattr(submit, "_labels", labels)
    submit.check_command(["-m", "seed=0,1,2", "task.target=viaduct,fireboat"])
    assert len(loaded) == 1
    submit.check_command(["-m", "classifier=planted_clean,planted_background_shortcut", "task.target=viaduct,fireboat"])
    assert len(loaded) == 3


def test_what_slurm_refuses_is_told_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    """A queue's commands that say what SLURM says where an array is too long."""
    said = "sbatch: error: Batch job submission failed: Invalid job array specification"
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}' >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert submit.main(["submit.workers=5000", f"outputs={tmp_path / 'outputs'}"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "sbatch rejected the jobs: Batch job submission failed: Invalid job array specification"


def test_a_machine_without_a_queue_says_so(monkeypatch: pytest.MonkeyPatch, capfd: Capture, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit.main([f"outputs={tmp_path / 'outputs'}"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "no sbatch" in line and "submit.cluster=local" in line
    assert submit.main(["status", f"outputs={tmp_path}"]) == 2 and "has no submission" in capfd.readouterr().err
    assert submit.main(["collect", "x=1"]) == 2 and "allowed are submission=" in capfd.readouterr().err


def test_slurm_is_told_what_the_file_says() -> None:
    settings, _ = submit.read_settings(
        ["submit.gpus=1", "submit.partition=gpu", "submit.max_parallel=2", "submit.setup=[date]"]
    )
    asked = submit.slurm_parameters(settings)
    assert asked["gpus_per_node"] == 1 and asked["slurm_partition"] == "gpu" and asked["slurm_array_parallelism"] == 2
    assert asked["slurm_setup"] == ["export OMP_NUM_THREADS=2", "date"] and asked["slurm_signal_delay_s"] == 120
    plain = submit.slurm_parameters(submit.read_settings([])[0])
    assert plain["slurm_array_parallelism"] == 4 and not {"slurm_partition", "gpus_per_node"} & set(plain)


def test_jobs_of_this_machine_do_the_work(cli: Cli, capfd: Capture, tmp_path: Path) -> None:
    words = ("limit=2", "batch=1", "optimizer.steps=1")
    sweep = ["-m", *(w for w in cli.arguments(*words)), "seed=0,1", "submit.cluster=local", "submit.workers=1"]
    assert submit.main(sweep) == 0
    told = capfd.readouterr().out
    given = read_submission(latest_submission(cli.outputs))
    assert re.search(r"^1 jobs: \d+$", told, re.MULTILINE) and f"submission: {given.folder}" in told
    assert given.overrides == [word for word in sweep if not word.startswith("submit.")]
    assert [given.job_state(job, {}) for job in given.jobs] == ["running"], "it returns at once"
    deadline = time.monotonic() + 200
    while "running" in (states := [given.job_state(job, {}) for job in given.jobs]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert states == ["done"], "".join(path.read_text() for path in cli.outputs.rglob("*log.*"))
    runs = given.runs()
    assert [run.count("done") for run in runs] == [2, 2]
    assert {json.loads(path.read_text())["job"] for run in runs for path in run.folder.glob("attempts/*")} == set(
        given.jobs
    )

    assert submit.main(["status", f"outputs={cli.outputs}", "problems=true"]) == 0
    said = capfd.readouterr().out
    assert said.count("  done\n") == 4 and all(job in said for job in given.jobs)
    assert submit.main(["collect", f"submission={given.folder}"]) == 0
    assert capfd.readouterr().out == f"page: {given.folder / 'index.html'}\n"
    with open(given.folder / "runs.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["seed"] for line in lines} == {"0", "1"} and [line["done"] for line in lines] == ["2", "2"]
    with open(given.folder / "problems.csv", newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 4 and {"seed", "name", "success", "target", "loss.total"} <= set(answers[0])
    page = (given.folder / "index.html").read_text()
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len([link for link in links if link.endswith("result.png")]) == 2 * 4, "each image opens large"
    assert all((given.folder / link).exists() for link in links)


def test_a_job_that_fails_says_so(cli: Cli, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a queue that runs its job at once, in this process."""

    class Executor:
        def __init__(self, folder: Path, cluster: str) -> None:
            pass

        def update_parameters(self, **parameters: Any) -> None:
            monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "101")

        def submit(self, job: Job) -> SimpleNamespace:
            with pytest.raises(SystemExit):
                job()
            return SimpleNamespace(job_id="101")

    monkeypatch.setattr(submit.submitit, "AutoExecutor", Executor)
    words = cli.arguments("limit=1", "data=folder", "data.path=nowhere")
    assert submit.main([*words, "submit.cluster=local", "submit.workers=1"]) == 0
    given = read_submission(latest_submission(cli.outputs))
    assert given.job_state(given.jobs[0], {}) == "failed, exit code 2"
    capfd.readouterr()
    assert submit.main(["status", f"outputs={cli.outputs}"]) == 1
    assert "failed, exit code 2" in capfd.readouterr().out


@pytest.mark.parametrize(("gpus", "given"), [(0, [None, None, None]), (2, [(0,), (1,), (0,)])])
def test_jobs_of_this_machine_take_turns_at_its_gpus(
    gpus: int, given: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    class Executor:
        def __init__(self, folder: Path, cluster: str) -> None:
            assert cluster == "local"

        def update_parameters(self, **parameters: Any) -> None:
            asked.append(parameters)

        def submit(self, job: Job) -> SimpleNamespace:
            return SimpleNamespace(job_id=str(100 + len(asked)))

    monkeypatch.setattr(submit.submitit, "AutoExecutor", Executor)
    monkeypatch.setattr(submit.torch.cuda, "device_count", lambda: gpus)
    found = submit.submit([f"outputs={tmp_path}", "submit.cluster=local", "submit.workers=3"])
    assert found.jobs == ["101", "102", "103"] and found.folder == tmp_path / "submissions" / "101"
    assert [own.get("visible_gpus") for own in asked] == given
    assert {own["gpus_per_node"] for own in asked} == {min(gpus, 1)}


# --- what is told of it --------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunStatus:
    """A run of seven problems in batches of two: two done, one failed, its neighbour open, two held, one free."""
    folder = RunFolder(tmp_path / "outputs" / "uvce" / "generator-classifier" / "0123456789")
    folder.write_config({"lease": {"duration": 60.0}, "name": "x"})
    folder.write_manifest(Manifest({name: {} for name in "abcdefg"}, {}, []))
    for name in "ab":
        folder.write_result(name, {"name": name})
    folder.write_failure("c", "step 3: not finite")
    claims = folder.path / "leases"
    claims.mkdir()
    (claims / f"{batch_name(4, 2)}.1").write_text(json.dumps(asdict(Process("node7", 5, "12_3"))))
    dead = claims / f"{batch_name(2, 2)}.1"
    dead.write_text(json.dumps(asdict(Process("node8", 5, "12_4"))))
    os.utime(dead, (time.time() - 100,) * 2)
    for foreign in (".DS_Store", "notes.txt", "problems-x.1", "problems-00000-00004~", f"{batch_name(0, 10**8)}.1~"):
        (claims / foreign).touch()
        (folder.path / "attempts" / foreign).parent.mkdir(exist_ok=True)
        (folder.path / "attempts" / foreign).touch()
    folder.write_attempt(Process("node7", 5, "12_3"), 1.0, "running", "")
    return RunStatus(folder.path)


def test_every_problem_is_in_one_state(run: RunStatus) -> None:
    assert run.problem_states == {
        "a": ("done", ""), "b": ("done", ""), "c": ("failed", "step 3: not finite"), "d": ("pending", ""),
        "e": ("running", "12_3-node7-5"), "f": ("running", "12_3-node7-5"), "g": ("pending", ""),
    }  # fmt: skip
    assert [run.count(state) for state in job_status.STATES] == [2, 1, 2, 2]
    assert run.name == "uvce/generator-classifier/0123456789"


def test_a_submission_finds_its_own_runs_and_jobs(run: RunStatus, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "submissions" / "12"
    own = Submission(folder, "slurm", ["12_3", "12_4", "12_5", "12_6"], [], "/")
    write_durable(exit_code_file(folder.parent, "12_3"), "0")
    write_durable(exit_code_file(folder.parent, "12_4"), "1")
    write_durable(exit_code_file(folder.parent, "12_6"), "0")
    states = [own.job_state(job, {"12_3": "RUNNING", "12_6": "PENDING"}) for job in own.jobs]
    assert states == ["running", "failed, exit code 1", "ended without an exit code", "waiting"], (
        "the queue knows better"
    )
    assert own.runs() == [run]
    assert replace(own, jobs=["13_3"]).runs() == []
    ranks = RunFolder(run.folder)
    ranks.write_attempt(Process("node7", 5, "14.1"), 1.0, "running", "")
    assert replace(own, jobs=["14"]).runs() == [run]


def test_settings_that_tell_runs_apart() -> None:
    first: dict[str, Any] = {"seed": 0, "task": {"target": "x", "preserve": "all"}, "command": "a", "list": [1]}
    second = {"seed": 1, "task": {"target": "x", "preserve": "all", "more": None}, "command": "b", "list": [2]}
    assert overview.differing_settings([first, second]) == [{"seed": 0}, {"seed": 1}]
    assert overview.differing_settings([first]) == [{}]
    third = {**first, "task": {"target": "y"}}
    assert overview.differing_settings([first, third]) == [
        {"task.target": "x", "task.preserve": "all"}, {"task.target": "y", "task.preserve": None},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"cluster": "slurm"}',
             '{"cluster": "slurm", "jobs": [], "overrides": [], "working_folder": "/"}',
             '{"cluster": "slurm", "jobs": [1], "overrides": [], "working_folder": "/"}'],
)  # fmt: skip
def test_a_broken_submission_is_told_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / job_status.SUBMISSION_FILE).write_text(text)
    with pytest.raises(UserError) as caught:
        read_submission(tmp_path)
    assert "submission.json" in str(caught.value) and "\n" not in str(caught.value)


def test_words_with_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    """They are no markup."""
    console = Console(width=100, file=StringIO(), record=True)
    given = Submission(tmp_path / "[bold]x", "local", ["1"], ["select.indices=[0]", "task.target=[/red]"], "/")
    overview.print_status(given, {"1": "RUNNING"}, False, console)
    assert "select.indices=[0] task.target=[/red]" in console.export_text()


def test_folders_that_are_no_submissions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"submission\.json does not exist"):
        read_submission(tmp_path)
    with pytest.raises(UserError, match="has no submission"):
        latest_submission(tmp_path)


def test_a_job_hands_on_the_exit_code(
    cli: Cli, capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "77")
    monkeypatch.chdir(tmp_path)
    assert call_run_py(["--no-such-option"]) == 2
    words = tuple(cli.arguments("limit=1", "optimizer.steps=1"))
    Job(tmp_path, words, tmp_path)()
    assert exit_code_file(tmp_path, "77").read_text() == "0"
    with pytest.raises(SystemExit) as end:
        Job(tmp_path, (*words, "batch=0"), tmp_path)()
    assert end.value.code == 2 and exit_code_file(tmp_path, "77").read_text() == "2"


def test_it_is_a_command(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(ROOT / "scripts" / "submit.py")
    monkeypatch.setattr(sys, "argv", [script, "submit.workers=0"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert end.value.code == 2 and capfd.readouterr().err.startswith("submit.workers=0")
