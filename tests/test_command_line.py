"""Words that Hydra cannot take end in one line that says what may be meant, or how a value is quoted."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from classifier_lens.models.classifier.loaders.class_names import imagenet_labels
from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.configuration.override_errors import (
    hydra_errors_in_one_line,
    list_override,
    quote_override,
    reorder_arguments,
)
from classifier_lens.runner.types import UserError
from tests.cli import Cli

MEANT = [
    ("optimzer.steps=1", "optimzer: no such key; similar names are optimizer"),
    ("optimizer.stepz=1", "optimizer.stepz: no such key; did you mean steps? allowed are method, steps, lr, "),
    ("optimizer.lr.latnt=1", "optimizer.lr.latnt: no such key; did you mean latent? "),
    ("tsk=uvce", "tsk: no such key; similar names are task"),
    ("~optimzer", "optimzer: no such key; similar names are optimizer"),
    ("classifier=planted_claen", "classifier=planted_claen: no such option; similar names are planted_clean"),
    ("task=nope", "task=nope: no such option; allowed are attention_maps, concept_effect, diffexplainer_class"),
    ("experiment=planted/disagrement", "similar names are planted/disagreement"),
    ("data@training=planted_trein", "data@training=planted_trein: no such option; similar names are planted_train"),
    (
        "data@trainig=planted",
        "data@trainig: no such group; did you mean data@training? allowed are data, data@training",
    ),
    ("hydra/launcher=nope", "hydra/launcher=nope: no such option; allowed are basic, slurm"),
    ("overlay=gray", "overlay=gray: the task has no such part; task=concept_effect has it"),
    ("task/retrieval=nope", "task/retrieval"),
    ("task", "task: expected are overrides key=value, such as task=uvce"),
    ("+foo=1", "foo=1: unknown key"),
    ("++a.b=1", "a={'b': 1}: unknown key"),
    ("+optimizer.lr.foo=1", "optimizer.lr.foo=1: unknown key"),
    ("~seed", "data.seed: Interpolation key 'seed' not found"),
    ("~limit", "limit: is missing; allowed are whole numbers"),
    ("~task", "task: no option is selected; allowed are attention_maps"),
    ("+task=uvce", "task appears more than once"),
    ("task.target=${nope}", "task.target: Interpolation key 'nope' not found"),
    ("seed=", "seed=: allowed are whole numbers from 0 to 1000000000"),
    ("=x", "=x: expected are overrides key=value"),
    ("seed =1", "seed : no such key; similar names are seed"),
    ("\u0455eed=1", "\u0455eed: no such key; similar names are seed"),  # a Cyrillic letter
    ("task=null", "task=null: no such option; allowed are attention_maps"),
    ("experiment=null", "experiment=null: no such option; allowed are report, diagnose/fig12"),
    (f"seed={'9' * 5000}", "9…: Exceeds the limit (4300 digits)"),
    (f"seed={'[' * 3000 + ']' * 3000}", "[…: maximum recursion depth exceeded"),
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
        compose_config([word])
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", VALUES)
def test_the_advice_how_to_quote_works(value: str) -> None:
    word = f"task.target={value}"
    (given,) = shlex.split(quote_override(word))
    assert OverridesParser.create().parse_override(given).value() == value
    try:
        assert compose_config([word])["task"]["target"] == value
    except UserError as error:
        assert str(error) == f"{word}: this value has to be quoted, for example {quote_override(word)}"


def test_all_names_of_imagenet_can_be_quoted() -> None:
    parser = OverridesParser.create()
    for name in imagenet_labels():
        (given,) = shlex.split(quote_override(f"task.target={name}"))
        assert parser.parse_override(given).value() == name


def test_a_list_of_any_names_is_taken_literally() -> None:
    names = [*imagenet_labels(), *VALUES, "fiddler crab", "Null", "inf", "3.10"]
    word = list_override("task.classes", names)
    assert OverridesParser.create().parse_override(word).value() == names
    assert list_override("task.classes", ["fiddler crab", "urn"]) == "task.classes=[fiddler crab,urn]"


@pytest.mark.parametrize(
    "words",
    [
        ["task.prompt='a ${x}'"],
        ["classifier=planted_claen"],
        ["task.target=potter's wheel"],
        ["-m", "optimzer.steps=1,2"],
        ["task=disagreement", "data.path=images"],
        ["threads=0"],
    ],
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


def test_options_may_stand_anywhere() -> None:
    assert reorder_arguments(["seed=1", "-m", "limit=1,2"]) == ["seed=1", "limit=1,2", "-m"]
    assert reorder_arguments(["--cfg", "job", "seed=1", "-p", "task"]) == ["seed=1", "--cfg", "job", "-p", "task"]
    assert reorder_arguments(["--", "seed=1", "seed=1"]) == ["seed=1", "seed=1"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--foo"], "unrecognized arguments: --foo"),
        (["-seed=1"], "unrecognized arguments: -seed=1"),
        (["--cfg"], "argument --cfg/-c: expected one argument"),
        (["--cfg", "seed=1"], "argument --cfg/-c: invalid choice: 'seed=1'"),
        (["-m", "--cfg", "job"], "--multirun and --cfg: exclude each other; give one"),
        (["--resolve"], "--resolve: needs --cfg"),
        (["--experimental-rerun", "x"], "--experimental-rerun: reads a pickle, which may execute code"),
    ],
)
def test_a_wrong_option_is_one_line(words: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        reorder_arguments(words)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [1", b"[1, 2]", b"x: !!python/object/apply:os.mkdir [x]", b""])
def test_a_configuration_of_the_users_own_that_is_broken(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "own.yaml").write_bytes(content)
    outcome = Cli.at(tmp_path, tmp_path, tmp_path).plain(capfd, "classifier=own", "--config-dir", str(tmp_path))
    assert outcome.code == 2 and len(outcome.lines) == 1, outcome


def test_what_a_task_raises_stays_as_it_is() -> None:
    def task() -> None:
        raise ValueError("a mistake of ours")

    with pytest.raises(ValueError, match="a mistake of ours") as caught, hydra_errors_in_one_line(["seed=1"], task):
        task()
    assert not isinstance(caught.value, UserError)
