"""Caches for loaders: most runs of the tests load the same tiny pipeline and the same shipped classifiers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.classifier.loaders import shipped
from classifier_lens.models.generator import latent_diffusion
from classifier_lens.models.generator.pipeline.networks import Networks

Stamps = tuple[tuple[str, int, int], ...]


@contextmanager
def cached_loaders() -> Iterator[None]:
    """Within, the files of a pipeline and of a shipped classifier are read once, until one of them is written again.
    Errors are not cached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_diffusion, "load_networks", _cached_networks(latent_diffusion.load_networks, patch))
        patch.setattr(shipped, "load_shipped", _cached_classifier(shipped.load_shipped))
        yield


def _cached_networks(load: Callable[..., Networks], patch: pytest.MonkeyPatch) -> Callable[..., Networks]:
    """`load_networks`. The networks are frozen and shared; what `Networks` itself holds is copied."""
    results: dict[tuple[Any, ...], Networks] = {}

    def cached(path: str, unet: str | None, lora: str | None, *settings: str | None) -> Networks:
        folders = [Path(folder) for folder in (path, unet, lora) if folder is not None]
        if not all(folder.is_dir() for folder in folders):
            return load(path, unet, lora, *settings)
        key = path, unet, lora, *settings, *map(_stamps, folders)
        if key not in results:
            results[key] = load(path, unet, lora, *settings)
        return copy.copy(results[key])

    def forgetting(change: Callable[[Networks], None]) -> Callable[[Networks], None]:
        """A change of networks, after which nobody else gets them."""

        def changed(networks: Networks) -> None:
            results.clear()
            change(networks)

        return changed

    patch.setattr(Networks, "compile", forgetting(Networks.compile))
    patch.setattr(Networks, "to_channels_last", forgetting(Networks.to_channels_last))
    return cached


def _cached_classifier(load: Callable[[str | Path], ImageClassifier]) -> Callable[[str | Path], ImageClassifier]:
    """`load_shipped`; each call returns a copy."""
    results: dict[tuple[str, Stamps], ImageClassifier] = {}

    @wraps(load)
    def cached(path: str | Path) -> ImageClassifier:
        folder = shipped.SHIPPED_FOLDER / path
        if not folder.is_dir():
            return load(path)
        key = str(path), _stamps(folder)
        if key not in results:
            results[key] = load(path)
        return copy.deepcopy(results[key])

    return cached


def _stamps(folder: Path) -> Stamps:
    """Name, time of the last change and size of each file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
