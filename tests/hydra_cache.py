"""Caches for Hydra: the tests read the same YAML files, and compose nearly the same commands, hundreds of times."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from classifier_lens.runner.paths import CONFIG_FOLDER


@contextmanager
def cached_compositions() -> Iterator[None]:
    """Within, a YAML text and an override are parsed once, and a selection of files of conf/ is merged once; the values
    of a command are set in a copy. Errors are not cached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "load", _cached_yaml(yaml.load))
        patch.setattr(OverridesParser, "parse_overrides", _cached_parser(OverridesParser.parse_overrides))
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
    """`OverridesParser.parse_overrides`, each override by itself."""
    results: dict[str, Override] = {}

    def parse(self: OverridesParser, overrides: list[str]) -> list[Override]:
        for text in overrides:
            if text not in results:
                (results[text],) = parse_overrides(self, [text])
        return [replace(results[text]) for text in overrides]

    return parse


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
