"""Words that Hydra cannot take end in one line that says what may be meant, or how a value is quoted."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from models.zoo.labels import imagenet_labels
from runner.compose import configure
from runner.overrides import quoted, with_training
from runner.types import UserError
from tests.cli import Cli

MEANT = [
    ("optimzer.steps=1", "optimzer: no such key; near ones are optimizer"),
    ("optimizer.stepz=1", "optimizer.stepz: no such key; did you mean steps? allowed are method, steps, lr, "),
    ("optimizer.lr.latnt=1", "optimizer.lr.latnt: no such key; did you mean latent? "),
    ("tsk=uvce", "tsk: no such key; near ones are task"),
    ("~optimzer", "optimzer: no such key; near ones are optimizer"),
    ("classifier=planted_claen", "classifier=planted_claen: no such option; near ones are planted_clean"),
    ("task=nope", "task=nope: no such option; allowed are attention_maps, diffexplainer_class, disagreement"),
    ("experiment=planted/disagrement", "near ones are planted/disagreement"),
    ("data@training=planted_trein", "data@training=planted_trein: no such option; did you mean planted_train? "),
    (
        "data@trainig=planted",
        "data@trainig: no such group; did you mean data@training? allowed are data, data@training",
    ),
    ("hydra/launcher=nope", "hydra/launcher=nope: no such option; allowed are basic, slurm"),
    ("task/validate=nope", "task/validate"),
    ("task", "task: wanted are words key=value, such as task=uvce"),
    ("+foo=1", "foo=1: nothing reads this key"),
    ("++a.b=1", "a={'b': 1}: nothing reads this key"),
    ("+optimizer.lr.foo=1", "optimizer.lr.foo=1: nothing reads this key"),
    ("~seed", "data.seed: Interpolation key 'seed' not found"),
    ("~limit", "limit: is missing; allowed are whole numbers"),
    ("~task", "task: nothing is chosen; allowed are attention_maps"),
    ("+task=uvce", "task appears more than once"),
    ("task.target=${nope}", "task.target: Interpolation key 'nope' not found"),
    ("seed=", "seed=: allowed are whole numbers from 0 to 1000000000"),
]
VALUES = [
    "potter's wheel",
    "impala (antelope)",
    "tench, Tinca tinca",
    "a=b",
    "猫",
    "[7",
    "{a",
    "50% off",
    'a "b"',
    "a\\b",
    "$x",
    "a\\",
    "\\'",
]


@pytest.mark.parametrize(("word", "line"), MEANT)
def test_what_may_be_meant_is_said(word: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        configure([word])
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", VALUES)
def test_the_advice_how_to_quote_works(value: str) -> None:
    word = f"task.target={value}"
    (given,) = shlex.split(quoted(word))
    assert OverridesParser.create().parse_override(given).value() == value
    try:
        assert configure([word])["task"]["target"] == value
    except UserError as error:
        assert str(error) == f"{word}: this value has to be quoted, for example {quoted(word)}"


def test_all_names_of_imagenet_can_be_quoted() -> None:
    parser = OverridesParser.create()
    for name in imagenet_labels():
        (given,) = shlex.split(quoted(f"task.target={name}"))
        assert parser.parse_override(given).value() == name


@pytest.mark.parametrize(
    "words", [["classifier=planted_claen"], ["task.target=potter's wheel"], ["-m", "optimzer.steps=1,2"], ["threads=0"]]
)
def test_run_py_says_it_in_one_line(words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = Cli.at(tmp_path, tmp_path, tmp_path).plain(capfd, *words, f"outputs={tmp_path / 'out'}")
    assert outcome.code == 2 and len(outcome.lines) == 1
    assert not list((tmp_path / "out").glob("*/"))


def test_run_py_still_shows_its_configuration(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = Cli.at(tmp_path, tmp_path, tmp_path).plain(capfd, "--cfg", "job", "seed=3")
    assert outcome.code == 0 and "seed: 3" in outcome.out


def test_every_bad_job_of_a_sweep_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["-m", "optimizer.steps=-1,-2", f"outputs={tmp_path / 'out'}"]
    outcome = Cli.at(tmp_path, tmp_path, tmp_path).plain(capfd, *words)
    assert outcome.code == 2 and [line.split(":")[0] for line in outcome.lines] == [
        "optimizer.steps=-1", "optimizer.steps=-2",
    ]  # fmt: skip


def test_words_about_training_images_stand_beside_the_others() -> None:
    """Behind an option they would be taken for no word."""
    alike = ["data@training=folder", "training.path=x"]
    own = ["data=folder", "data.path=x"]
    assert with_training([*own, "--cfg", "job"]) == [*own, *alike, "--cfg", "job"]
    assert with_training(["-m", *own]) == ["-m", *own, *alike]
    assert with_training(["--cfg", "job"]) == ["--cfg", "job"]


def test_one_image_is_no_folder_of_training_images(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    words = ["experiment=dig_in/fig10", f"data.path={tmp_path / 'x.jpg'}"]
    assert with_training(words) == words
    folder = ["experiment=dig_in/fig10", f"data.path={tmp_path}"]
    assert with_training(folder) == [*folder, f"training.path={tmp_path}"]
