"""Every wrong value of every key ends in one line that names the key, the value and what is allowed, before anything is
loaded. Composed and bound, never run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import pytest

from runner.schema import HYDRAS_OWN, check_settings
from runner.settings import Settings, SubmitSettings
from runner.submit_settings import SETTINGS, settings_of
from runner.types import UserError
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
ANY_SIGN = ("runner.optimize.Stop.below",)


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
            if key not in HYDRAS_OWN:
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
    assert accepted == {("baseline", "mahendran_vedaldi", "weights")}  # which has to have the penalties' names


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
    assert {key for key in accepted if not key.startswith("baseline.")} == {"optimizer.autocast", "generator.draws"}


@pytest.mark.parametrize(
    ("choice", "path", "value", "line"),
    [
        ("task=attention_maps", "task.keep", "none", "task.keep=none: allowed are background, foreground"),
        ("task=uvce", "task.mode", "colour", "task.mode=colour: allowed are class, error, attribute"),
        ("task=uvce", "augment.min_share", math.inf, "augment.min_share=inf: allowed are numbers above 0 and up to 1"),
        ("task=uvce", "threads", 100_000, "threads=100000: allowed are whole numbers from 1 to 1024 or null"),
        ("task=uvce", "batch", "autoo", "batch=autoo: allowed are whole numbers from 1 to 4096 or auto"),
        ("task=uvce", "task.weights.pixel_distanc", 1, "did you mean pixel_distance? allowed are class_log_prob, "),
        ("task=uvce", "optimizer.lr.latnt", 1, "optimizer.lr.latnt=1: nothing reads this key; did you mean latent? "),
        ("task=uvce", "sede", 1, "sede=1: nothing reads this key; near ones are seed"),
        ("task=neuron_cf", "task.cam", 3, "task.cam=3: allowed are a part, {_target_: …}"),
        ("task=uvce", "optimizer.method._target_", "torch.optim.Adamm", "optimizer.method._target_=torch.optim.Adamm"),
        ("task=uvce", "task.target", True, "a text of these letters is written task.target=\"'true'\""),
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


@pytest.mark.parametrize("key", OmegaConf.load(SETTINGS))
def test_every_wrong_setting_of_jobs_is_refused(key: str) -> None:
    settings: Any = OmegaConf.to_container(OmegaConf.load(SETTINGS))
    for value in WRONG[type(settings[key])]:
        with pytest.raises(UserError, match=rf"submit\.{key}"):
            check_settings(SubmitSettings, settings | {key: value}, "submit.")


def test_settings_of_jobs_are_read_from_words() -> None:
    assert settings_of(["submit.account=1234", "task=uvce"])[0]["account"] == "1234"
    with pytest.raises(UserError, match=r"submit\.gpus=-1: allowed are whole numbers from 0"):
        settings_of(["submit.gpus=-1"])
