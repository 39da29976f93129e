"""The user's network: an object, or the name of a network or of a function that creates it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from torch import nn

from classifier_lens.models.classifier.image_classifier import ImageClassifier, forward_logits
from classifier_lens.models.classifier.loaders.class_names import read_labels
from classifier_lens.models.classifier.loaders.network_identity import track_identity
from classifier_lens.models.classifier.preprocessing import INTERPOLATIONS
from classifier_lens.models.classifier.user_code_errors import describe_error
from classifier_lens.runner.configuration.value_ranges import Names, Normalization, OneOf, Pixels
from classifier_lens.runner.types import UserError


def callable_classifier(
    target: str | Callable[..., Any], labels: str | Names, size: Pixels, mean: Normalization, std: Normalization,
    interpolation: Annotated[str, OneOf(INTERPOLATIONS)], domain: str | None, output: str | None = None,
    extra_files: Sequence[str] = (),
) -> ImageClassifier:  # fmt: skip
    """The user's network as a classifier.

    Args:
        target: a function or `torch.nn.Module` that maps normalized images (b, 3, size, size) to logits (b, k), or its
            name as `module:name` or `file.py:name`. A function without required arguments is called once and has to
            return such a network.
        labels: a text file with one name per line, or the names, in the order of the logits.
        output: type of the outputs, one of `models.classifier.logits.OUTPUT_CONVERTERS`, None for undeclared logits.
        extra_files: files other than code and weights that the outputs depend on, see
            `models.classifier.loaders.network_identity`.

    Raises:
        UserError: with the file and line of the user's code, if that fails.
    """
    if isinstance(target, str):
        key = f"classifier.target={target}"
        with _import_path(target):
            network = _create_network(_import_target(target, key), key)
    else:
        key = f"classifier={getattr(target, '__name__', type(target).__name__)}"
        network = _create_network(target, key)
    if isinstance(network, nn.Module):
        network.float()
    names = read_labels(labels)
    classifier = ImageClassifier(network, names, size, mean, std, interpolation, domain, forward_logits, key, output)
    return track_identity(classifier, target if isinstance(target, str) else "", extra_files)


def _create_network(target: Any, key: str) -> Any:
    """The target itself if it is a network, otherwise its return value. Raises UserError for other objects."""
    if not callable(target):
        raise UserError(f"{key}: {type(target).__name__} cannot be called with images")
    if isinstance(target, nn.Module) or not _has_no_required_parameters(target):
        return target
    try:
        network = target()
    except Exception as error:  # the user's code may raise any exception
        raise UserError(f"{key}: {describe_error(error)}") from error
    if not callable(network):
        raise UserError(f"{key}: returns a {type(network).__name__}, which cannot be called with images")
    return network


def _has_no_required_parameters(function: Callable[..., Any]) -> bool:
    """Whether all parameters have a default; False if there is no signature, and for *args and **kwargs."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of some built-in functions
        return False
    return all(p.default is not p.empty for p in parameters)


def _import_target(target: str, key: str) -> Callable[..., Any]:
    """The object that the target names. Raises UserError if it cannot be imported or is not callable."""
    source, _, name = target.rpartition(":")
    if not source or not name:
        raise UserError(f"{key}: allowed are module:name and file.py:name")
    try:
        module = _import_file(Path(source).expanduser()) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:  # the import runs the user's code
        raise UserError(f"{key}: cannot import {source}: {describe_error(error)}") from error
    if not callable(imported := getattr(module, name, None)):
        names = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise UserError(f"{key}: {source} has no callable {name}; it has {names or 'none'}")
    return imported


@contextmanager
def _import_path(target: str) -> Iterator[None]:
    """Within the context, the folder of the target's file, or the working folder, is the first of Python's import path;
    afterwards it is the last, since a network may import modules when it is called."""
    source = Path(target.rpartition(":")[0])
    folder = str(source.expanduser().resolve().parent) if source.suffix == ".py" else os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _import_file(path: Path) -> ModuleType:
    """The module in a file, under a name that differs from that of any package."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; the working folder is {Path.cwd()}")
    module_name = f"own_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # needed by dataclasses
    spec.loader.exec_module(module)
    return module
