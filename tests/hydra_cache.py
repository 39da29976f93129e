"""Caches for Hydra: the tests read the same YAML files, and compose nearly the same commands, hundreds of times."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import Any

import omegaconf.base
import pytest
import yaml
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from classifier_lens.runner.paths import CONFIG_FOLDER

# A key and the absolute path of a file or folder, which differ from test to test.
PATH_OVERRIDE = re.compile(r"([a-z_.]+=)(/[\w./-]+)")


@contextmanager
def cached_compositions() -> Iterator[None]:
    """Within, a YAML text and an override are parsed once, and a selection of files of conf/ is merged once; the values
    of a command are set in a copy. Errors are not cached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "load", _cached_yaml(yaml.load))
        patch.setattr(OverridesParser, "parse_overrides", _cached_parser(OverridesParser.parse_overrides))
        patch.setattr(omegaconf.base, "parse", cache(omegaconf.base.parse))
        patch.setattr(
            defaults_list, "_create_interpolation_map", _where_needed(defaults_list._create_interpolation_map)
        )
        patch.setattr(ConfigRepository, "load_config", _cached_files(ConfigRepository.load_config))
        patch.setattr(
            config_loader_impl, "create_defaults_list", _cached_defaults(config_loader_impl.create_defaults_list)
        )
        patch.setattr(
            ConfigLoaderImpl,
            "_compose_config_from_defaults_list",
            _cached_merge(ConfigLoaderImpl._compose_config_from_defaults_list),
        )
        yield


def _cached_yaml(load_yaml: Any) -> Any:
    """`yaml.load`; OmegaConf makes a class of the same name for each call."""
    results: dict[tuple[str | bytes, str], bytes] = {}

    def load(stream: Any, Loader: type) -> Any:
        text = stream
        if hasattr(stream, "read"):
            start = stream.tell()
            text = stream.read()
            stream.seek(start)
        key = text, Loader.__qualname__
        if key not in results:
            results[key] = pickle.dumps(load_yaml(stream, Loader))
        return pickle.loads(results[key])

    return load


def _cached_parser(parse_overrides: Any) -> Any:
    """`OverridesParser.parse_overrides`, each override by itself; all absolute paths are parsed as one of them."""
    results: dict[str, Override] = {}

    def parse_one(self: OverridesParser, text: str) -> Override:
        if text not in results:
            (results[text],) = parse_overrides(self, [text])
        return replace(results[text])

    def parse(self: OverridesParser, overrides: list[str]) -> list[Override]:
        paths = [PATH_OVERRIDE.fullmatch(text) for text in overrides]
        return [
            replace(parse_one(self, f"{path[1]}/x"), _value=path[2], input_line=text) if path else parse_one(self, text)
            for text, path in zip(overrides, paths, strict=True)
        ]

    return parse


def _where_needed(create_interpolation_map: Any) -> Any:
    """`_create_interpolation_map`: the choices that options of a defaults list refer to, which few lists do."""

    def create(overrides: Overrides, defaults: list[InputDefault], self_added: bool) -> DictConfig:
        if any(not (d.is_self() or d.is_override()) and d.is_interpolation() for d in defaults):
            choices: DictConfig = create_interpolation_map(overrides, defaults, self_added)
            return choices
        return OmegaConf.create()

    return create


def _cached_files(load_config: Any) -> Any:
    """`ConfigRepository.load_config`: a file of conf/ or of Hydra's, None if there is none."""
    results: dict[str, bytes] = {}

    def load(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        if not _reads_shipped_files_alone(self):
            config: ConfigResult | None = load_config(self, config_path)
            return config
        if config_path not in results:
            results[config_path] = pickle.dumps(load_config(self, config_path))
        loaded: ConfigResult | None = pickle.loads(results[config_path])
        return loaded

    return load


def _cached_defaults(create_defaults_list: Any) -> Any:
    """`create_defaults_list`: which files a command selects; of the overrides, those of a group decide."""
    results: dict[Any, bytes] = {}

    def create(repo: IConfigRepository, overrides_list: list[Override], **settings: Any) -> DefaultsList:
        if not _reads_shipped_files_alone(repo):
            return create_defaults_list(repo=repo, overrides_list=overrides_list, **settings)
        if settings["skip_missing"]:
            # Hydra asks whether this is a sweep before it composes; where no option is missing, both are equal.
            with suppress(Exception):
                return create(repo=repo, overrides_list=overrides_list, **{**settings, "skip_missing": False})
        overrides = Overrides(repo=repo, overrides_list=overrides_list)
        values = {id(override) for override in overrides.config_overrides}
        groups = tuple(override.input_line for override in overrides_list if id(override) not in values)
        key = groups, tuple(sorted(settings.items()))
        if key not in results:
            defaults = create_defaults_list(repo=repo, overrides_list=overrides_list, **settings)
            results[key] = pickle.dumps((defaults.defaults, defaults.overrides.known_choices))
        selected, overrides.known_choices = pickle.loads(results[key])
        tree: Any = None  # of the defaults, which nobody reads
        return DefaultsList(selected, tree, overrides.config_overrides, overrides)

    return create


def _cached_merge(compose: Any) -> Any:
    """`ConfigLoaderImpl._compose_config_from_defaults_list`: the selected files, merged."""
    results: dict[str, bytes] = {}

    def merge(self: ConfigLoaderImpl, defaults: Sequence[ResultDefault], repo: IConfigRepository) -> DictConfig:
        if not _reads_shipped_files_alone(repo):
            return compose(self, defaults=defaults, repo=repo)
        key = repr(defaults)
        if key not in results:
            results[key] = pickle.dumps(compose(self, defaults=defaults, repo=repo))
        return pickle.loads(results[key])

    return merge


def _reads_shipped_files_alone(repo: IConfigRepository) -> bool:
    """Whether conf/ is the only folder with configuration files; the files of other folders may change."""
    return {source.path for source in repo.get_sources() if source.scheme() == "file"} == {str(CONFIG_FOLDER)}
