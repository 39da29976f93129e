"""Caches for Hydra: the tests read the same YAML files, and often compose the same command, hundreds of times."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from hydra.version import VersionBase

from classifier_lens.runner.paths import CONFIG_FOLDER


@contextmanager
def cached_compositions() -> Iterator[None]:
    """Within, a YAML text is parsed once, and a command that reads conf/ alone is composed once per working folder.
    Every caller gets a copy. Errors are not cached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "load", _cached_yaml(yaml.load))
        patch.setattr(ConfigLoaderImpl, "load_configuration", _cached_composition(ConfigLoaderImpl.load_configuration))
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


def _cached_composition(load_configuration: Any) -> Any:
    """`ConfigLoaderImpl.load_configuration`."""
    results: dict[Any, bytes] = {}

    def load(self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], **settings: Any) -> Any:
        folders = {source.path for source in self.repository.get_sources() if source.scheme() == "file"}
        if folders != {str(CONFIG_FOLDER)} or any("hydra.searchpath" in word for word in overrides):
            return load_configuration(self, config_name, overrides, **settings)
        if settings.get("validate_sweep_overrides") is False:
            # Hydra asks whether this is a sweep before it composes: if it is a run, what it composes next says so.
            with suppress(Exception):
                run = {**settings, "run_mode": RunMode.RUN, "validate_sweep_overrides": True}
                return load(self, config_name, overrides, **run)
        base, name = VersionBase.instance().version_base, JobRuntime().get("name")
        key = base, name, os.getcwd(), config_name, tuple(overrides), tuple(sorted(settings.items()))
        if key not in results:
            results[key] = pickle.dumps(load_configuration(self, config_name, overrides, **settings))
        return pickle.loads(results[key])

    return load
