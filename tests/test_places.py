"""The project in every surrounding: another working folder, an installation, a program with packages of its own."""

from __future__ import annotations

import fnmatch
import importlib.util
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import runner
from runner.compose import CONF, build, configure
from tests.cli import ROOT, Cli

TASKS = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
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
    shipped = [text for text in texts(configure(words)) if "models/pretrained" in text and not text.startswith("it ")]
    assert shipped and all(Path(text).is_absolute() and Path(text).exists() for text in shipped), shipped


def test_paths_are_as_they_are_written_in_the_projects_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of runs do not depend on where the project lies."""
    monkeypatch.chdir(ROOT)
    assert configure([])["generator"]["path"] == "models/pretrained/planted"


def test_a_path_of_the_users_is_looked_for_in_their_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert configure(["generator.path=models/pretrained/planted"])["generator"]["path"] == "models/pretrained/planted"
    assert not Path("models/pretrained/planted").exists()


def test_the_audits_segmenter_loads_from_another_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["task=spurious_audit", "generator.resolution=16", "generator.maps.side=8", "training.count=20"]
    parts = build(configure([*words, f"generator.path={cli.pipeline}", f"generator.unet={cli.student}"]))
    assert parts.task.networks


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


def test_an_installation_has_every_file() -> None:
    """What git keeps of the packages and of conf/ is code, or matches the patterns of what is installed beside it."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = [name.rstrip("*") for name in tools["packages"]["find"]["include"]]
    kept = subprocess.run(
        ["git", "ls-files", *packages], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {"conf", "models"} <= {file.split("/")[0] for file in kept}
    patterns = ["*.py", *tools["package-data"]["*"]]
    assert not [file for file in kept if not any(fnmatch.fnmatch(Path(file).name, p) for p in patterns)]


def test_another_package_of_our_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = importlib.util.spec_from_file_location("models", tmp_path / "models" / "__init__.py")
    monkeypatch.setattr(runner, "find_spec", lambda name: other if name == "models" else importlib.util.find_spec(name))
    with pytest.raises(ImportError, match=f"`models` is a package of this project .*and here it is {tmp_path}/models"):
        runner._check(ROOT)
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="here it is none"):
        runner._check(ROOT)
