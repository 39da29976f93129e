"""The user's own network: an object, or the name of what makes it."""

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

from classifier_lens.models.classifier.image_classifier import INTERPOLATIONS, ImageClassifier, forward_logits
from classifier_lens.models.classifier.loaders.class_names import read_labels
from classifier_lens.models.classifier.loaders.network_identity import track_identity
from classifier_lens.models.classifier.user_code_errors import describe_error
from classifier_lens.runner.configuration.value_ranges import Names, Normalization, OneOf, Pixels
from classifier_lens.runner.types import UserError


def callable_classifier(
    target: str | Callable[..., Any], labels: str | Names, size: Pixels, mean: Normalization, std: Normalization,
    interpolation: Annotated[str, OneOf(INTERPOLATIONS)], domain: str | None, output: str | None = None,
    extra_files: Sequence[str] = (),
) -> ImageClassifier:  # fmt: skip
    """The user's own network.

    target: a function or `torch.nn.Module` that maps normalised images (b, 3, size, size) to logits (b, k), or its name
    as `module:name` or `file.py:name`; what can be called without arguments is called once and returns such a network;
    labels: a text file of one name per line, or the names, in the order of the logits; output: what the network gives,
    one of `models.classifier.logits.OUTPUT_CONVERTERS`, None for logits that nobody declared; extra_files: what its
    answers follow from beside its code and its weights, see `models.classifier.loaders.network_identity`. Raises
    UserError in one line, with the user's file and line where the error is the user's code's."""
    if isinstance(target, str):
        key = f"classifier.target={target}"
        with _looked_for(target):
            network = _made(_import(target, key), key)
    else:
        key = f"classifier={getattr(target, '__name__', type(target).__name__)}"
        network = _made(target, key)
    if isinstance(network, nn.Module):
        network.float()
    names = read_labels(labels)
    classifier = ImageClassifier(network, names, size, mean, std, interpolation, domain, forward_logits, key, output)
    return track_identity(classifier, target if isinstance(target, str) else "", extra_files)


def _made(found: Any, key: str) -> Any:
    """The network: what was found, or what it returns if it can be called without arguments."""
    if not callable(found):
        raise UserError(f"{key}: {type(found).__name__} cannot be called with images")
    if isinstance(found, nn.Module) or not _takes_nothing(found):
        return found
    try:
        network = found()
    except Exception as error:  # anything may go wrong in code that is not ours
        raise UserError(f"{key}: {describe_error(error)}") from error
    if not callable(network):
        raise UserError(f"{key}: gives a {type(network).__name__}, which cannot be called with images")
    return network


def _takes_nothing(found: Callable[..., Any]) -> bool:
    """Whether every parameter that it names has a default; of what names none, such as *args, it is not known."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError:  # of some built-in functions
        return False
    return all(p.default is not p.empty for p in parameters)


def _import(target: str, key: str) -> Callable[..., Any]:
    """The object that `target` names."""
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise UserError(f"{key}: allowed are module:name and file.py:name")
    try:
        module = _import_file(Path(place).expanduser()) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # it runs the user's code
        raise UserError(f"{key}: cannot import {place}: {describe_error(error)}") from error
    if not callable(found := getattr(module, name, None)):
        names = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise UserError(f"{key}: {place} has no callable {name}; it has {names or 'none'}")
    return found


@contextmanager
def _looked_for(target: str) -> Iterator[None]:
    """Meanwhile modules are looked for beside the target's file, or in the working folder, before anywhere else; they
    still are afterwards, but last, as a network may import when it is called."""
    place = Path(target.rpartition(":")[0])
    folder = str(place.expanduser().resolve().parent) if place.suffix == ".py" else os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _import_file(path: Path) -> ModuleType:
    """The module in a file, under a name that no package has."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; it is looked for in {Path.cwd()}")
    module_name = f"own_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
