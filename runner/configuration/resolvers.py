"""What conf/ can refer to beside other keys: `${project:…}`, `${training_set:…}` and `${run_data:…}`."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from classifier_lens.runner.paths import ROOT

WITHOUT_TRAINING_IMAGES = ("image", "none")  # one image, and none: data sets that hold no training images


def project_path(path: str) -> str:
    """`${project:<path>}`: what lies in or beside the project's folder, for every working folder. Where that is the
    working folder it stays as short as it is written."""
    return path if Path.cwd() == ROOT else os.path.normpath(ROOT / path)


def training_set(data: str, domain: str) -> str:
    """`${training_set:<data>,<domain>}`, within lists of defaults: the data option with the training images of a data
    option. `<data>_train` where there is one, the domain's where the data set can have none, else the same option."""
    if data in WITHOUT_TRAINING_IMAGES:
        data = domain
    options = GlobalHydra.instance().config_loader().get_group_options("data")
    return f"{data}_train" if f"{data}_train" in options else data


def run_data(key: str, default: object = None, *, _root_: DictConfig, _parent_: DictConfig) -> object:
    """`${run_data:<key>,<default>}`, within a data set that stands beside the run's own: what `data.<key>` is where the
    two are of one kind, else the default."""
    data = OmegaConf.select(_root_, "data")
    alike = isinstance(data, DictConfig) and data is not _parent_ and data.get("_target_") == _parent_.get("_target_")
    return data.get(key) if alike and not OmegaConf.is_missing(data, key) else default


def register_resolvers() -> None:
    """Make them known to OmegaConf."""
    for name, resolver in (("project", project_path), ("training_set", training_set), ("run_data", run_data)):
        OmegaConf.register_new_resolver(name, resolver, replace=True)
