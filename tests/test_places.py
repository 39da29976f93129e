"""The project in every surrounding: another working folder, an installation, a program with packages of its own."""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from classifier_lens.data import planted
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.paths import CONFIG_FOLDER
from classifier_lens.runner.report import page
from tests.cli import ROOT, Cli

TASKS = sorted(path.stem for path in (CONFIG_FOLDER / "task").glob("*.yaml"))
GENERATORS = ("planted_ddim", "planted_lcm", "cifar10_ddim", "cifar10_lcm")


def texts(node: object) -> Iterator[str]:
    """All texts of a configuration."""
    if isinstance(node, str):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from texts(part)


@pytest.mark.parametrize("words", [
    *([f"task={task}"] for task in TASKS), *([f"generator={name}"] for name in GENERATORS),
    ["experiment=planted/audit"],
], ids=" ".join)  # fmt: skip
def test_shipped_paths_are_found_from_another_folder(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = [
        text for text in texts(compose_config(words)) if "models/pretrained" in text and not text.startswith("it ")
    ]
    assert shipped and all(Path(text).is_absolute() and Path(text).exists() for text in shipped), shipped


def test_paths_are_as_they_are_written_in_the_projects_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of runs do not depend on where the project lies."""
    monkeypatch.chdir(ROOT)
    assert compose_config([])["generator"]["path"] == "models/pretrained/planted"


def test_a_path_of_the_users_is_looked_for_in_their_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        compose_config(["generator.path=models/pretrained/planted"])["generator"]["path"] == "models/pretrained/planted"
    )
    assert not Path("models/pretrained/planted").exists()


def test_the_audits_segmenter_loads_from_another_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "task=spurious_audit",
        "generator.resolution=16",
        "generator.attention_maps.resolution=8",
        "training.count=20",
    ]
    parts = build(compose_config([*words, f"generator.path={cli.pipeline}", f"generator.unet={cli.student}"]))
    assert parts.task.dependencies


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_from_another_folder(
    task: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the shipped weights, as they are found from there."""
    monkeypatch.chdir(tmp_path)
    words = [f"task={task}", "classifier=planted_shortcut", "limit=1", "logger=none", f"outputs={tmp_path / 'o'}"]
    few = [] if task in ("attention_maps", "input_gradients") else ["optimizer.steps=1"]
    data = {"diffexplainer_class", "neuron_cf", "neuron_vis", "npca_cf", "spurious_audit"}
    outcome = cli.plain(capfd, *words, "sampler=lcm", *few, *(["training.count=200"] if task in data else []))
    assert outcome.code == 0, outcome


def installed(folder: Path) -> Path:
    """The project as `pip install .` puts it into an environment, made of what git keeps."""
    source = folder / "source"
    for file in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if (ROOT / file).is_file() and not file.startswith(("docs/", "tests/")):
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, source / file)
    site = folder / "site"
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    return site


PROGRAM = """
import json
import data, models  # the user's own packages
from classifier_lens.models.classifier.loaders.shipped import load_shipped
from classifier_lens.runner import cli, paths
from classifier_lens.runner.report.page import TEMPLATES
code = cli.main(["--cfg", "job"])
print()
print(json.dumps([str(paths.ROOT), models.MINE and data.MINE, load_shipped("planted_clean").labels[0], code,
                  sorted(path.name for path in TEMPLATES.iterdir())]))
"""


@pytest.mark.slow
def test_an_installation_works_beside_packages_of_the_users(tmp_path: Path) -> None:
    """From another folder, with packages `models` and `data` of their own in it."""
    site, own = installed(tmp_path), tmp_path / "own"
    for name in ("data", "models"):
        (own / name).mkdir(parents=True)
        (own / name / "__init__.py").write_text("MINE = True\n")
    environment = {**os.environ, "PYTHONPATH": f"{site}:{own}"}
    command = [sys.executable, "-c", PROGRAM]
    end = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    root, mine, label, code, templates = json.loads(end.stdout.splitlines()[-1])
    assert (root, mine, code) == (str(site / "classifier_lens"), True, 0)
    assert label in planted.CLASSES and "planted_clean" in end.stdout
    assert templates == sorted(path.name for path in page.TEMPLATES.iterdir())


def test_no_import_names_a_folder_that_users_may_have_too() -> None:
    """Packages `models` and `data` of a user are imported by these names, those of the project by `classifier_lens`."""
    folders = {"conf", "data", "models", "runner", "scripts", "tasks"}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not folders & {name.partition(".")[0] for name in names}, path


def test_an_installation_has_every_file() -> None:
    """Every package is named, and what git keeps beside code matches the patterns of what is installed with it."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name: path for name, path in tools["package-dir"].items()}
    kept = subprocess.check_output(["git", "ls-files", *folders.values()], cwd=ROOT, text=True).splitlines()
    kept = [file for file in kept if (ROOT / file).is_file()]
    assert set(tools["packages"]) == {
        "classifier_lens." + str(Path(file).parent).replace("/", ".") for file in kept if file.endswith("__init__.py")
    }
    patterns = [
        f"{folders.get(name, name.removeprefix('classifier_lens.').replace('.', '/'))}/{pattern}"
        for name, some in tools["package-data"].items() for pattern in some
    ]  # fmt: skip
    others = [file for file in kept if not file.endswith(".py")]
    missing = [file for file in others if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)]
    assert {file.split("/")[0] for file in others} >= {"conf", "models"} and missing == ["scripts/slurm_local.sh"]
