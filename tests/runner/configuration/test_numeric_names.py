"""Names that look like numbers, or like references to keys, reach their readers as they are written."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from classifier_lens.runner.configuration.compose import compose_config, expand_sweep
from classifier_lens.runner.configuration.numeric_names import changes_spelling, quote_numbers
from classifier_lens.runner.configuration.override_errors import quote_override
from classifier_lens.runner.results.reader import read_config
from classifier_lens.runner.results.run_folder import RunFolder
from classifier_lens.runner.types import UserError
from tests.runner.configuration.test_resolvers import begun

NUMBERS = ["3.10", "1_000", "1e3", "0x10", "007", "+5", ".5", "1.", "-0", "7", "true", "yes", "NO", "NaN"]
REFERENCES = ["${", "a${b}c", "\\${x", "${a}\\", "'${"]


def test_on_the_command_line() -> None:
    assert compose_config([f"task.target=[{','.join(NUMBERS)}]"])["task"]["target"] == NUMBERS
    for name in ("3.10", "1_000", "true"):
        assert compose_config([f"task.target={name}"])["task"]["target"] == name
    both = compose_config(["data=image", "data.path=1e3", "data.label=2.50", "seed=1_000", "optimizer.lr.latent=1e-3"])
    assert (both["data"]["path"], both["data"]["label"]) == ("1e3", "2.50")
    assert both["seed"] == 1000 and both["optimizer"]["lr"]["latent"] == 0.001
    assert compose_config(["select.classes=null"])["select"]["classes"] is None
    for word, line in (("seed=true", "allowed are whole"), ("task.target=null", "write task.target=\"'null'\"")):
        with pytest.raises(UserError, match=f"^{word}: .*{line}"):
            compose_config([word])


def test_in_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["-m", "task.target=3.10,1_000,[1e3,cat]", "optimizer.lr.latent=1e-3,0.10", f"outputs={tmp_path}"]
    wanted = [(target, rate) for target in ("3.10", "1_000", ["1e3", "cat"]) for rate in (0.001, 0.1)]
    for configs in (begun(monkeypatch, *words), [compose_config(job) for job in expand_sweep(words)]):
        assert [(c["task"]["target"], c["optimizer"]["lr"]["latent"]) for c in configs] == wanted


def test_in_files_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("experiment", "classifier"):
        (tmp_path / folder).mkdir()
    (tmp_path / "classifier" / "mine.yaml").write_text(
        f"defaults:\n  - callable\n  - _self_\ntarget: a:b\nlabels: [{', '.join(NUMBERS)}]\n"
    )
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /classifier: mine\ntask: {target: 3.10}\n"
    )
    (config,) = begun(monkeypatch, "--config-dir", str(tmp_path), "experiment=mine", f"outputs={tmp_path}")
    assert config["task"]["target"] == "3.10"
    assert config["classifier"]["labels"] == NUMBERS


@pytest.mark.parametrize("name", REFERENCES)
def test_references_that_are_names(name: str, tmp_path: Path) -> None:
    config = compose_config([], {"task.target": name, "select.classes": [name]})
    assert config["task"]["target"] == name and config["select"]["classes"] == [name]
    (word,) = shlex.split(quote_override(f"task.target={name}"))
    assert compose_config([word])["task"]["target"] == name
    folder = RunFolder(tmp_path)
    folder.write_config(config)
    read: Any = read_config(tmp_path / "config.yaml")
    assert read["task"]["target"] == name and folder.has_settings(config)


@pytest.mark.parametrize("word", ["task.target=${x", "task.target='${x'", "data.path=a/${"])
def test_an_open_reference_ends_in_a_line_that_shows_how_to_quote(word: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_config([word])
    line = str(caught.value)
    assert line.startswith(f"{word}: this value has to be quoted, for example ") and "\n" not in line
    (given,) = shlex.split(line.partition("for example ")[2])
    node: Any = compose_config([given] if given.startswith("task") else ["data=folder", given])
    assert "${" in (node["task"]["target"] + str(node["data"].get("path")))


def test_a_number_that_nobody_can_read_back_is_refused() -> None:
    with pytest.raises(UserError, match=r"task\.target=3\.1: allowed are .* write task\.target=\"'3\.1'\""):
        compose_config([], {"task.target": 3.1})


def test_words_that_a_sweep_writes_anew() -> None:
    assert [word for word in NUMBERS if changes_spelling(f"a={word}")] == [
        "3.10",
        "1_000",
        "1e3",
        "007",
        "+5",
        ".5",
        "1.",
        "-0",
    ]
    assert not changes_spelling("a=7,-3,0.5,[10,x],'3.10',b 3.10")
    assert quote_numbers("a=3.10,[7, 'x, 1'],{b: 1e3},2 cats") == "a='3.10',['7', 'x, 1'],{b: '1e3'},2 cats"


def test_files_of_runs_are_read_as_they_are_written(tmp_path: Path) -> None:
    config = {"a": ["1e3", "3.10", "2020-01-01", "1:30", "yes", "${", "猫"], "b": {"c": 1e-5, "d": None}}
    RunFolder(tmp_path).write_config(config)
    assert read_config(tmp_path / "config.yaml") == config == yaml.safe_load((tmp_path / "config.yaml").read_text())
