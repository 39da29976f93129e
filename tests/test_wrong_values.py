"""Every wrong value of every key ends in one line that names the key, the value and what is allowed, before anything is
loaded. Composed and bound, never run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
from omegaconf import DictConfig

from classifier_lens.runner.cluster.submit_settings import SUBMIT_CONFIG, read_settings
from classifier_lens.runner.configuration.command_line import parse_options
from classifier_lens.runner.configuration.runner_settings import Settings, SubmitSettings
from classifier_lens.runner.configuration.schema import HYDRA_KEYS, check_settings
from classifier_lens.runner.report.figures import figure
from classifier_lens.runner.types import UserError
from classifier_lens.scripts import user_study
from classifier_lens.scripts.bench import bench, quality
from classifier_lens.scripts.choices import run_main
from classifier_lens.scripts.evaluate import evaluate, label_features
from classifier_lens.scripts.train import classifier, clip, distill_lcm, generator, segmenter
from classifier_lens.scripts.train.settings import RESUMABLE, ClassifierSettings, ClipSettings, SegmenterSettings
from tests.test_config import CONF, EVERY, NEEDED, OmegaConf, plain

HUGE = 10**12
NUMBERS: list[Any] = ["word", True, math.nan, math.inf, -math.inf, HUGE, 1e300, [1], {"a": 1}, ""]
# What no key takes whose shipped value is of a type. A null stands for a number, a text or a list that is not given.
WRONG: dict[type, list[Any]] = {
    bool: ["word", 3, 0, None, math.nan, [True], {"a": True}, ""],
    int: [*NUMBERS, -1, 1.5],
    float: [*NUMBERS, -1],
    str: [True, math.nan, math.inf, "", "  ", {"a": 1}, [True], [[]]],
    list: [True, math.nan, {"a": math.nan}, [True, {}], [None], -HUGE * 1.5e9],
    type(None): [True, math.nan, math.inf, [math.nan]],
}
# Settings of torch's optimizers: their signatures state no ranges, which they check themselves.
ELSEWHERE = ("torch.",)
# A bound below 0 is what a term of an activation wants.
ANY_SIGN = ("classifier_lens.runner.optimization.loop.EarlyStopping.thresholds",)


def target(choice: str) -> str:
    """What an option names, nothing where it inherits that."""
    group, option = choice.split("=")
    found = re.search(r"^_target_: (\S+)", (CONF / group / f"{option}.yaml").read_text(), re.MULTILINE)
    return found[1] if found else ""


DIFFERENT = ["task=uvce", *{target(choice): choice for choice in reversed(EVERY) if target(choice)}.values()]


def leaves(node: Any, path: tuple[Any, ...] = (), owner: str = "") -> Iterator[tuple[tuple[Any, ...], str, Any]]:
    """Every value of a configuration with its path, and what names it: the part that it is given to."""
    if isinstance(node, dict) and node:
        owner = str(node.get("_target_", owner))
        for key, inner in node.items():
            if key not in HYDRA_KEYS:
                yield from leaves(inner, (*path, key), f"{owner}.{key}")
    else:
        yield path, owner, node


@cache
def keys() -> dict[str, tuple[str, tuple[Any, ...], Any]]:
    """One place for each value of each part of all options: the option, the path and the shipped value."""
    found: dict[str, tuple[str, tuple[Any, ...], Any]] = {}
    for choice in DIFFERENT:
        for path, owner, value in leaves(plain(choice, *needed(choice))):
            found.setdefault(f"{owner}:{type(value).__name__}", (choice, path, value))
    return found


def needed(choice: str) -> list[str]:
    return NEEDED.get(choice, []) + (NEEDED["data=imagenet"] if choice == "domain=imagenet" else [])


def changed(config: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    config = deepcopy(config)
    node = config
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return config


def said(config: dict[str, Any]) -> str:
    """What is said of a configuration, nothing if it is right."""
    try:
        check_settings(Settings, config)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_every_wrong_value_of_every_key_is_refused(kind: type) -> None:
    own = {owner: place for owner, place in keys().items() if type(place[2]) is kind}
    assert own
    accepted = []
    for owner, (choice, path, _) in own.items():
        wrong = [{"a": 1}, True] if owner.startswith(ELSEWHERE) else WRONG[kind]
        for value in wrong[: -1 if owner.startswith(ANY_SIGN) else None]:
            line = said(changed(plain(choice, *needed(choice)), path, value))
            key = ".".join(map(str, path))
            if not line.startswith(key) or "\n" in line or ("allowed are" not in line and "near ones" not in line):
                accepted.append((key, value, line))
    assert not accepted


def test_a_key_that_nothing_reads_is_refused_wherever_it_stands() -> None:
    config, names = plain(), {path[:-1] for path, _, _ in leaves(plain())}
    accepted = {path for path in names if not said(changed(config, (*path, "foo"), 1))}
    assert accepted == {("baseline", "mahendran_vedaldi", "penalty_weights")}  # which has to have the penalties' names


def test_a_key_that_is_taken_away_is_missed() -> None:
    accepted = set()
    for path, owner, _ in leaves(plain()):
        config = deepcopy(plain())
        node = config
        for step in path[:-1]:
            node = node[step]
        del node[path[-1]]
        # A control without a rate keeps its value, and torch's optimizers have defaults.
        if not said(config) and len(path) > 1 and "lr" not in str(path[-2]) and not owner.startswith(ELSEWHERE):
            accepted.add(".".join(path))
    # Lists of a baseline are filled in when it is built, which says so itself.
    assert {key for key in accepted if not key.startswith("baseline.")} == {
        "optimizer.autocast",
        "generator.known_classes",
    }


@pytest.mark.parametrize(
    ("choice", "path", "value", "line"),
    [
        ("task=attention_maps", "task.preserve", "none", "task.preserve=none: allowed are background, foreground"),
        ("task=uvce", "task.mode", "colour", "task.mode=colour: allowed are class, error, attribute"),
        ("task=disagreement", "task.mode", "loud", "task.mode=loud: allowed are confidence"),
        ("task=diffexplainer_class", "task.objective", "all", "task.objective=all: allowed are class, unit"),
        ("task=attention_maps", "task.preserve", "all", "task.preserve=all: allowed are background, foreground"),
        ("task=uvce", "task.preserve", "sky", "task.preserve=sky: allowed are background, foreground, all, none"),
        ("task=uvce", "task.num_seeds", 0, "task.num_seeds=0: allowed are whole numbers from 1"),
        ("task=uvce", "seed", -1, "seed=-1: allowed are whole numbers from 0"),
        ("task=uvce", "data.count", 0, "data.count=0: allowed are whole numbers from 1 to 1000000"),
        ("task=uvce", "limit", 0, "limit=0: allowed are whole numbers from 1"),
        ("task=uvce", "batch", 0, "batch=0: allowed are whole numbers from 1"),
        ("task=uvce", "generator.steps", 0, "generator.steps=0: allowed are whole numbers from 1"),
        ("task=uvce", "optimizer.steps", -1, "optimizer.steps=-1: allowed are whole numbers from 0"),
        ("task=uvce", "checkpoint.every", 0, "checkpoint.every=0: allowed are whole numbers from 1"),
        (
            "task=uvce",
            "generator.gradient_checkpointing",
            "all",
            "generator.gradient_checkpointing=all: allowed are none, step, block, auto",
        ),
        (
            "task=uvce",
            "augment.min_crop_fraction",
            math.inf,
            "augment.min_crop_fraction=inf: allowed are numbers above 0 and up to 1",
        ),
        ("task=uvce", "threads", 100_000, "threads=100000: allowed are whole numbers from 1 to 1024 or null"),
        ("task=uvce", "batch", "autoo", "batch=autoo: allowed are whole numbers from 1 to 4096 or auto"),
        ("task=uvce", "task.weights.pixel_distanc", 1, "did you mean pixel_distance? allowed are class_log_prob, "),
        ("task=uvce", "optimizer.lr.latnt", 1, "optimizer.lr.latnt=1: unknown key; did you mean latent? "),
        ("task=uvce", "sede", 1, "sede=1: unknown key; similar names are seed"),
        ("task=neuron_cf", "task.cam", 3, "task.cam=3: allowed are a part, {_target_: …}"),
        ("task=uvce", "optimizer.method._target_", "torch.optim.Adamm", "optimizer.method._target_=torch.optim.Adamm"),
        ("task=uvce", "task.target", True, "to give it as a text, write task.target=\"'true'\""),
        ("task=uvce", "data.seed", 1.0, "data.seed=1.0: allowed are whole numbers from 0 to 1000000000"),
    ],
)
def test_the_line_says_what_is_allowed(choice: str, path: str, value: Any, line: str) -> None:
    assert line in said(changed(plain(choice), tuple(path.split(".")), value))


def test_numbers_are_names_where_names_are_asked() -> None:
    config = changed(changed(plain(), ("task", "target"), [7, "8"]), ("select", "classes"), [2024])
    checked = check_settings(Settings, config)
    assert checked["task"]["target"] == ["7", "8"] and checked["select"]["classes"] == ["2024"]
    assert check_settings(Settings, changed(plain(), ("task", "target"), 7))["task"]["target"] == "7"


# The defaults of the training scripts, and what reads them.
TRAINING: dict[str, type] = {
    "classifier": ClassifierSettings, "clip": ClipSettings,
    **{f"{name}_{data}": RESUMABLE[name] for name in ("generator", "lcm") for data in ("planted", "cifar10")},
    "segmenter_planted": SegmenterSettings,
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINING)
def test_every_wrong_setting_of_a_training_is_refused(name: str) -> None:
    base = DictConfig(OmegaConf.load(CONF / "train" / f"{name}.yaml"))
    base.pop("presets", None)
    base.name = base.get("name") or "mine"
    if name not in ("classifier", "clip"):
        base.pop("name")
    config: Any = OmegaConf.to_container(base, resolve=True)
    check_settings(TRAINING[name], config)
    accepted = []
    for path, _, shipped in leaves(config):
        for value in WRONG.get(type(shipped), []) if path[0] != "kwargs" else []:  # which the architecture checks
            key = ".".join(path)
            try:
                check_settings(TRAINING[name], changed(config, path, value))
                accepted.append((key, value))
            except UserError as error:
                assert str(error).startswith(key) and "allowed are" in str(error) and "\n" not in str(error), error
    assert not accepted
    for path in {path[:-1] for path, _, _ in leaves(config) if path[0] != "kwargs"}:
        with pytest.raises(UserError, match="unknown key"):
            check_settings(TRAINING[name], changed(config, (*path, "foo"), 1))


@pytest.mark.parametrize(
    ("main", "word", "line"),
    [
        (classifier.main, "steps=-1", "steps=-1: allowed are whole numbers from 0"),
        (classifier.main, "stepz=1", "stepz=1: unknown key; similar names are steps"),
        (classifier.main, "steps", "steps: expected are overrides key=value"),
        (classifier.main, "kwargs={", "kwargs={: cannot be read"),
        (classifier.main, "kwargs={depth: -3}", "architecture=resnet18 kwargs={'depth': -3}: "),
        (classifier.main, "architecture=resnet0", "architecture=resnet0 kwargs={"),
        (classifier.main, "out=${nope}", "out: Interpolation key 'nope' not found"),
        (classifier.main, "augment=3", "augment=3: allowed are {name: value} of crop, flip, blur, "),
        (clip.main, "model.vision_cfg.layers=[1]", "model.vision_cfg.layers=[1]: allowed are lists [a, b] of 4"),
        (generator.main, "data=faces", "data=faces: allowed are planted, cifar10"),
        (generator.main, "vae.lr=nan", "vae.lr=nan: allowed are numbers above 0"),
        (distill_lcm.main, "student_type=lora", "student_type=lora: needs the settings `lora`"),
        (segmenter.main, "device=gpu", "device=gpu: "),
    ],
)
def test_training_scripts_say_it_in_one_line(
    main: Callable[[Sequence[str]], object], word: str, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_main(main, [word, *(["images=10", "out=nowhere"] if "resnet" in line else [])]) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith(line)


NO_NUMBERS = ["word", "true", "nan", "inf", "-inf", "-1", "1000000000000", "1e300", "[1]", "{a: 1}", "", "["]


@pytest.mark.parametrize(
    "kind",
    [
        evaluate.Options,
        bench.Options,
        quality.Options,
        label_features.Options,
        figure.FigureOptions,
        user_study.ScoreOptions,
        *(kind.options for kind in user_study.STUDIES.values()),
    ],
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
def test_every_wrong_option_of_a_script_is_refused(kind: type) -> None:
    accepted: list[tuple[str, object]] = []
    for field in fields(kind):
        default: Any = field.default
        texts = isinstance(default, str) or "str" in str(field.type)
        wrong = [""] if texts else ["word", "3", "null", ""] if isinstance(default, bool) else NO_NUMBERS
        for word in (f"{field.name}={value}" for value in wrong):
            try:
                accepted.append((word, parse_options(kind, [word])))
            except UserError as error:
                assert str(error).startswith(word[: word.index("=")]) and "\n" not in str(error)
    assert not accepted
    for word in ("foo=1", "foo"):
        with pytest.raises(UserError, match="^foo"):
            parse_options(kind, [word])


def test_texts_of_options_are_as_they_are_written() -> None:
    chosen = parse_options(evaluate.Options, ["outputs=3.10", "metrics=1_000", "n=null", "seed=7"])
    assert (chosen.outputs, chosen.metrics, chosen.n, chosen.seed) == ("3.10", "1_000", None, 7)
    assert classifier.load_settings(["name=3.10"]).name == "3.10"


@pytest.mark.parametrize("key", OmegaConf.load(SUBMIT_CONFIG))
def test_every_wrong_setting_of_jobs_is_refused(key: str) -> None:
    settings: Any = OmegaConf.to_container(OmegaConf.load(SUBMIT_CONFIG))
    for value in WRONG[type(settings[key])]:
        with pytest.raises(UserError, match=rf"submit\.{key}"):
            check_settings(SubmitSettings, settings | {key: value}, "submit.")


def test_settings_of_jobs_are_read_from_words() -> None:
    assert read_settings(["submit.account=1234", "task=uvce"])[0]["account"] == "1234"
    with pytest.raises(UserError, match=r"submit\.gpus=-1: allowed are whole numbers from 0"):
        read_settings(["submit.gpus=-1"])
