"""The user's own network, by the name of what makes it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from models.classifier import ImageClassifier, ask_logits
from models.zoo.labels import read_labels
from runner.types import UserError


def callable_classifier(
    target: str, labels: str | Sequence[str], size: int, mean: Sequence[float], std: Sequence[float],
    interpolation: str, domain: str | None, output: str | None = None,
) -> ImageClassifier:  # fmt: skip
    """The user's own network.

    target: `module:name` or `file.py:name` of a function or `torch.nn.Module` that maps normalised images
    (b, 3, size, size) to logits (b, k); a function without arguments is called once and returns such a network;
    labels: a text file of one name per line, or the names, in the order of the logits;
    output: what the network gives, one of `models.outputs.OUTPUTS`, None for logits that nobody declared.
    """
    key = f"classifier.target={target}"
    network = _import(target, key)
    if not isinstance(network, nn.Module) and not inspect.signature(network).parameters:
        network = network()
    if not callable(network):
        raise UserError(f"{key}: gives a {type(network).__name__}, which cannot be called with images")
    if isinstance(network, nn.Module):
        network.float()
    names = read_labels(labels)
    return ImageClassifier(network, names, size, mean, std, interpolation, domain, ask_logits, key, output)


def _import(target: str, key: str) -> Callable[..., Any]:
    """The object that `target` names; modules are also looked for in the working folder."""
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise UserError(f"{key}: allowed are module:name and file.py:name")
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    except (ImportError, OSError, SyntaxError) as error:
        raise UserError(f"{key}: cannot import {place}: {error}") from error
    if not callable(found := getattr(module, name, None)):
        names = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise UserError(f"{key}: {place} has no callable {name}; it has {names or 'none'}")
    return found


def _import_module(name: str) -> ModuleType:
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
