"""OmegaConf resolvers of conf/: `${project:…}`, `${training_set:…}`, `${run_data:…}` and `${submit_default:…}`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from classifier_lens.runner.paths import CONFIG_FOLDER, ROOT

WITHOUT_TRAINING_IMAGES = ("image", "none")  # data options without training images


def project_path(path: str) -> str:
    """`${project:<path>}`: a path relative to the project's folder, for any working folder. In the project's folder it
    remains relative."""
    return path if Path.cwd() == ROOT else os.path.normpath(ROOT / path)


def training_set(data: str, domain: str) -> str:
    """`${training_set:<data>,<domain>}`, in defaults lists: the data option with the training images of a data option.
    That is `<data>_train` if it exists, the domain's if the data set has no training images, else the same option."""
    if data in WITHOUT_TRAINING_IMAGES:
        data = domain
    options = GlobalHydra.instance().config_loader().get_group_options("data")
    return f"{data}_train" if f"{data}_train" in options else data


def run_data(key: str, default: object = None, *, _root_: DictConfig, _parent_: DictConfig) -> object:
    """`${run_data:<key>,<default>}`, in a further data set: the value of `data.<key>` if the run's data set is of the
    same kind, else the default."""
    data = OmegaConf.select(_root_, "data")
    if not isinstance(data, DictConfig) or data is _parent_ or data.get("_target_") != _parent_.get("_target_"):
        return default
    return default if OmegaConf.is_missing(data, key) else data.get(key)


def submit_default(key: str) -> object:
    """`${submit_default:<key>}`: the default of `submit.<key>` in conf/submit.yaml, for Hydra's launcher."""
    return OmegaConf.select(OmegaConf.load(CONFIG_FOLDER / "submit.yaml"), key)


def register_resolvers() -> None:
    """Register the resolvers with OmegaConf."""
    resolvers: dict[str, Callable[..., object]] = {
        "project": project_path, "training_set": training_set, "run_data": run_data, "submit_default": submit_default,
    }  # fmt: skip
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
