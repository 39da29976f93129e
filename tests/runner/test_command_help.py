"""`python run.py --help`: one screen, at once, and true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from classifier_lens.runner.command_help import EXAMPLES, GROUPS, KEYS, WIDEST, help_text, options
from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.paths import CONFIG_FOLDER
from tests.cli import ROOT

ELSEWHERE = {"hydra", "train"}  # folders of conf/ that run.py's user does not choose from


def test_every_group_has_a_line_with_its_options() -> None:
    folders = {path.name for path in CONFIG_FOLDER.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert set(GROUPS) == folders - ELSEWHERE
    text = " ".join(help_text(WIDEST).split())
    for name, about in GROUPS.items():
        assert f"{name} {about}: {', '.join(options(CONFIG_FOLDER / name))}" in text


def test_every_key_is_one_of_the_configuration() -> None:
    config = compose_config(
        [
            "classifier=callable",
            "classifier.target=a.py:b",
            "classifier.labels=c",
            "data=image",
            "data.path=a",
            "data.label=b",
        ]
    )
    missing = object()
    assert [key for key in KEYS if OmegaConf.select(OmegaConf.create(config), key, default=missing) is missing] == []
    assert len(KEYS) == 20


@pytest.mark.parametrize("command", EXAMPLES)
def test_every_example_composes(command: str) -> None:
    words = [word.split(",")[0] for word in command.split()[2:] if word.startswith("-") is False and word != "job"]
    assert compose_config(words)


def test_it_is_one_screen_and_imports_nothing_that_takes_time() -> None:
    program = "import sys; from classifier_lens.runner import cli; code = cli.main(['task=uvce', '--help']); " \
              "print(sorted({'torch', 'hydra', 'numpy', 'omegaconf'} & set(sys.modules)), code)"  # fmt: skip
    environment = {**os.environ, "COLUMNS": "120"}
    end = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    *lines, last = end.stdout.splitlines()
    assert last == "[] 0" and len(lines) <= 68
    assert all(len(line) <= WIDEST for line in lines) and "Usage: python run.py" in lines[1]


def test_the_conf_of_an_installation_is_read(tmp_path: Path) -> None:
    (tmp_path / "b_train.yaml").touch()
    for name in ("a", "a_train"):
        (tmp_path / f"{name}.yaml").touch()
    assert options(tmp_path) == ["a", "b_train"], "a training set is named by its own set"
