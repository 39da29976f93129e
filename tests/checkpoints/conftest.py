"""Folders in the hub's layouts, written once, and empty caches of the hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.checkpoints.hub import write_stable_diffusion


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 1.5's layout with small random weights."""
    folder = write_stable_diffusion(tmp_path_factory.mktemp("hub") / "stable-diffusion-v1-5")
    assert not (folder / "safety_checker").exists() and not (folder / "feature_extractor").exists()
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Empty caches of the hub and of torch hub, and no network; removed at once, for some files have gigabytes."""
    folder = tmp_path / "home"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder / "torch"))
    yield folder
    shutil.rmtree(folder)
