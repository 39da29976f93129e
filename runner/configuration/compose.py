"""Composition of a configuration, and construction of the objects of a run from it, each once."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import cache, reduce
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.conf import RuntimeConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf

from classifier_lens.data.image_selection import select_images
from classifier_lens.models.devices import parse_device
from classifier_lens.models.hub import ALTERNATIVES
from classifier_lens.runner.configuration.numeric_names import (
    SourceTexts,
    changes_spelling,
    is_all_text,
    quote_numbers,
    texts_of_files,
    texts_of_overrides,
)
from classifier_lens.runner.configuration.override_errors import hydra_errors_in_one_line
from classifier_lens.runner.configuration.renamed_keys import renamed_option
from classifier_lens.runner.configuration.resolvers import register_resolvers
from classifier_lens.runner.configuration.runner_settings import Settings
from classifier_lens.runner.configuration.schema import check_settings
from classifier_lens.runner.lazy_part import LazyPart
from classifier_lens.runner.paths import CONFIG_FOLDER, PACKAGE
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.results.reader import read_config
from classifier_lens.runner.run import Parts
from classifier_lens.runner.types import UserError, first_line

MULTIRUN_FLAGS = ("-m", "--multirun")
FOLDER_GROUPS = ("task", "generator", "classifier")  # their options are in the name of a run folder


register_resolvers()


def resolve_config(
    cfg: DictConfig, runtime: RuntimeConf, overrides: Sequence[str], given: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """The plain configuration with the run's name, its command, the environment and the selected baseline alone.

    runtime: `hydra.runtime` of the configuration; given: values by the placeholder that stands for them in `cfg`.
    Raises UserError for an unknown baseline, and if a part or a value is missing.
    """
    with hydra_errors_in_one_line(overrides):
        missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{', '.join(missing)}: is missing; set it, its file in conf/ describes it")
    with hydra_errors_in_one_line(overrides):
        config: Any = _replace_placeholders(OmegaConf.to_container(cfg, resolve=True), given or {})
    for part in fields(Parts):
        if part.default is MISSING and part.name not in config:
            options = ", ".join(sorted(path.stem for path in (CONFIG_FOLDER / part.name).glob("*.yaml")))
            raise UserError(f"{part.name}: no option is selected; allowed are {options}")
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    config = _checked(config, cfg, texts_of_files(folders, runtime.choices) | texts_of_overrides(overrides))
    # A task that optimizes nothing has no baselines.
    baseline = config["task"].get("baseline", "none")
    if baseline not in config["baseline"]:
        word = f"task.baseline={baseline}"
        raise UserError(renamed_option(word) or f"{word}: allowed are {', '.join(config['baseline'])}")
    config["baseline"] = {baseline: config["baseline"][baseline]}
    chosen = {group: runtime.choices[group] for group in (*FOLDER_GROUPS, "parametrization")}
    config["options"] = chosen  # what readers of the run folder call its parts
    config["name"] = "{task}/{generator}-{classifier}".format(**chosen)
    config["command"] = shlex.join(["python", "run.py", *overrides])
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    config["environment"] = {"torch": str(torch.__version__), "threads": torch.get_num_threads()}
    return config


def _checked(config: dict[str, Any], cfg: DictConfig, source_texts: SourceTexts) -> dict[str, Any]:
    """The configuration with checked values, as their consumers take them. Raises UserError for a wrong value. Keys
    that an experiment defines itself, and that only interpolations read, are not checked."""
    interpolated = set(re.findall(r"\$\{(\w+)", OmegaConf.to_yaml(cfg))) - set(Settings.__dataclass_fields__)
    unchecked = {key: value for key, value in config.items() if key in interpolated}
    settings = {key: value for key, value in config.items() if key not in unchecked}
    return unchecked | check_settings(Settings, settings, "", source_texts)


def _devices(node: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, object]]:
    """The keys that select devices, with their values, the key of the whole run first."""
    yield from ((f"{place}{key}", value) for key, value in node.items() if key == "device")
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _devices(value, f"{place}{key}.")


def build(config: Mapping[str, Any], **given: Any) -> Parts:
    """The parts of a run, each built once from its node, with the selected images of the data set; parts that are
    `given` as objects are not built. Raises UserError if a part rejects its settings."""
    for key, name in _devices(config):
        parse_device(key, name)
    torch.manual_seed(config["seed"])
    # The data set first and the generator last: errors appear before gigabytes are loaded.
    order = dict.fromkeys(("data", *Parts.__dataclass_fields__))
    with _by_their_keys(config):
        nodes = _deferred(_shared({key: config[key] for key in order if key not in given and key in config}), config)
        generator = {"generator": nodes.pop("generator")} if "generator" in nodes else {}
        built = {**instantiate(nodes, _convert_="all"), **given}
    if "data" not in given:
        built["data"] = select_images(built["data"], **config["select"])
    built["task"].check(built["classifier"], built["data"])
    with _by_their_keys(config):
        parts = Parts(**built, **instantiate(generator, _convert_="all"))
    for network in (parts.classifier, *parts.task.dependencies):
        if isinstance(network, torch.nn.Module):
            network.to(parts.generator.device)
    return parts


@contextmanager
def _by_their_keys(config: Mapping[str, Any]) -> Iterator[None]:
    """Within, a UserError of a part names the key that sets the part."""
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise UserError(_by_its_key(str(error.__cause__), str(error), config)) from None
        raise


def _deferred(nodes: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes; parts are loaded at their first use only, so that their weights may be absent: the segmenter of the
    generator if the task needs no mask of one, and the CLIP model of a task."""
    task = config["task"]
    needs_mask = task.get("preserve") in ("background", "foreground") and task.get("mask") is None
    for owner, part in [*([] if needs_mask else [("generator", "segmenter")]), ("task", "clip")]:
        if (node := nodes.get(owner, {}).get(part)) is not None:
            nodes = {**nodes, owner: {**nodes[owner], part: _lazy(node, config)}}
    return nodes


def _lazy(node: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A node whose instance loads the part of the given node."""

    def load() -> Any:
        with _by_their_keys(config):
            return instantiate(node, _convert_="all")

    lazy = LazyPart(cache(load))
    return {"_target_": "classifier_lens.runner.configuration.compose.get_built", "part": lambda: lazy}


def load_recorded_dataset(node: Mapping[str, Any], place: str) -> Dataset:
    """The data set that the configuration of a run folder names. Hydra would call any function that the file of a
    stranger names, so only the loaders of conf/data are called. place: prefix of errors.

    Raises UserError for any other function, and if the images cannot be read.
    """
    loaders = {read_config(path).get("_target_") for path in (CONFIG_FOLDER / "data").glob("*.yaml")} - {None}
    if foreign := [name for name in _targets(node) if name not in loaders]:
        raise UserError(f"{place}: names {foreign[0]}, which is not a loader of conf/data and is not called for safety")
    try:
        dataset: Dataset = instantiate(node)
    except InstantiationException as error:  # absent data, or a run folder of an older version
        reason = first_line(error.__cause__ or error)
        raise UserError(f"{place}: its training images cannot be read ({reason})") from error
    return dataset


def _targets(node: Any) -> Iterator[Any]:
    """The `_target_` entries of a node, at any depth."""
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"]
    if isinstance(node, (dict, list)):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _targets(value)


def _shared(nodes: dict[str, Any]) -> Any:
    """The nodes, in which equal nodes of models/ are replaced by one object, so that e.g. a CLIP model of several parts
    is loaded once. An object is wrapped in a call that returns it, since OmegaConf would turn a dataclass into a
    dictionary; so is a text that OmegaConf would interpolate or take for a missing value."""
    counts = Counter(json.dumps(node, sort_keys=True) for node in _models(nodes))
    built: dict[str, Any] = {}

    def replaced(node: Any) -> Any:
        if isinstance(node, list):
            return [replaced(value) for value in node]
        if isinstance(node, str) and ("${" in node or node == "???"):
            return {"_target_": "classifier_lens.runner.configuration.compose.get_built", "part": lambda: node}
        if not isinstance(node, dict):
            return node
        key = json.dumps(node, sort_keys=True)
        parts = {name: replaced(value) for name, value in node.items()}
        if counts[key] < 2:
            return parts
        if key not in built:
            part = instantiate(parts, _convert_="all")
            built[key] = {"_target_": "classifier_lens.runner.configuration.compose.get_built", "part": lambda: part}
        return built[key]

    return replaced(nodes)


def get_built(part: Callable[[], Any]) -> Any:
    """The part, which exists already."""
    return part()


def _models(node: Any) -> Iterator[dict[str, Any]]:
    """The nodes that build objects of models/, at any depth."""
    if isinstance(node, dict) and str(node.get("_target_")).startswith(f"{PACKAGE}.models."):
        yield node
    if isinstance(node, (dict, list)):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _models(value)


def _by_its_key(message: str, error: str, config: Mapping[str, Any]) -> str:
    """A loader's message with the key that sets its part: it names the key of its group, but a task's rival is a
    classifier that `rival.…` sets. error: Hydra's message, which has no attribute with the position of the node."""
    position = re.search(r"full_key: task\.(\w+)$", error)
    if position is None:
        return message
    node, parts = config["task"][position[1]], {part.name for part in fields(Parts)}
    keys = [key for key, other in config.items() if key not in parts and other == node]
    if not keys:
        return message
    if (group := message.partition(".")[0]) in ALTERNATIVES:  # the advice may be wrong for this key
        message = message.replace(ALTERNATIVES[group], ALTERNATIVES.get(keys[0], ALTERNATIVES[group]))
    return re.sub(r"^\w+\.", f"{keys[0]}.", message)


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Initialize Hydra with conf/ within; a Hydra that the caller has initialized is restored afterwards."""
    state, version = GlobalHydra.instance(), VersionBase.instance()
    hydra, base = state.hydra, version.version_base
    state.clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_FOLDER)):
            yield
    finally:
        GlobalHydra.set_instance(state)
        state.hydra, version.version_base = hydra, base


def compose_config(overrides: Sequence[str], given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """The configuration of `python run.py <overrides>`. given: values by key that are taken literally, whatever
    characters they contain."""
    with _own_hydra(), hydra_errors_in_one_line(overrides):
        cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    runtime = cfg.hydra.runtime
    with_hydra = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(with_hydra, dict)
    plain = OmegaConf.create({key: value for key, value in with_hydra.items() if key != "hydra"})
    placeholders: dict[str, object] = {}  # OmegaConf would interpolate a text, and has no arrays
    for i, (key, value) in enumerate((given or {}).items()):
        group, _, name = key.rpartition(".")
        if name not in (node := OmegaConf.select(plain, group)).keys():
            raise UserError(f"{key}: no such key; {group} has {', '.join(k for k in node if k != '_target_')}")
        placeholders[f"\0{i}"] = value.tolist() if isinstance(value, (np.ndarray, np.generic, torch.Tensor)) else value
        OmegaConf.update(plain, key, f"\0{i}")
    return resolve_config(plain, runtime, overrides, placeholders)


def _replace_placeholders(node: Any, given: Mapping[str, object]) -> Any:
    """A node of the configuration with the given values in place of their placeholders."""
    if isinstance(node, dict):
        return {key: _replace_placeholders(value, given) for key, value in node.items()}
    if isinstance(node, list):
        return [_replace_placeholders(value, given) for value in node]
    return given.get(node, node) if isinstance(node, str) else node


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run that `python run.py <overrides>` starts: one run, or those of a sweep of the experiment
    or of the command line."""
    plain, choices = parse_sweep(overrides)
    return [[*plain, *job] for job in product(*choices)]


def parse_sweep(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The overrides that all runs of a command share, and for each swept key its overrides. Raises UserError if run.py
    could not start a run."""
    return _sweep_of(quote_names(overrides))


def quote_names(words: Sequence[str]) -> list[str]:
    """The words of a command, with quotes around names that look like numbers, since Hydra's sweeper would write 3.10
    as 3.1. Words that cannot be composed are returned as they are; the run reports the error."""
    candidates = {word.partition("=")[0]: word for word in words if not word.startswith("-") and changes_spelling(word)}
    if not candidates:
        return list(words)
    try:
        plain, choices = _sweep_of(
            [word for word in words if word in MULTIRUN_FLAGS or ("=" in word and word[0] != "-")]
        )
        config = compose_config([*plain, *(options[0] for options in choices)])
    except UserError:
        return list(words)
    values = {word: reduce(_below, key.lstrip("+").split("."), config) for key, word in candidates.items()}
    names = {word for word, value in values.items() if is_all_text(value)}
    return [quote_numbers(word) if word in names else word for word in words]


def _below(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, dict) else None


def _sweep_of(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    words = [word for word in overrides if word not in MULTIRUN_FLAGS]
    with _own_hydra(), hydra_errors_in_one_line(overrides):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        of_command = parser.parse_overrides(words)
        plain = [str(o.input_line) for o in of_command if not o.is_sweep_override()]
        hydra = compose("config", overrides=plain, return_hydra_config=True).hydra
        is_sweep = len(words) < len(overrides) or hydra.mode == RunMode.MULTIRUN
        of_experiment = [f"{k}={v}" for k, v in (hydra.sweeper.params or {}).items()] if is_sweep else []
        if not is_sweep:
            compose("config", overrides=words)  # raises if a word has several values
    last = {o.get_key_element(): o for o in (*parser.parse_overrides(of_experiment), *of_command)}
    swept = {key: o for key, o in last.items() if o.is_sweep_override()}
    choices = [[f"{key}={value}" for value in o.sweep_string_iterator()] for key, o in swept.items()]
    for override, values in zip(swept.values(), choices, strict=True):
        if not values:
            raise UserError(f"{override.input_line}: no option matches the pattern")
    return [str(o.input_line) for key, o in last.items() if key not in swept], choices
