"""Identity of a user's network beyond its weights: its source files, and networks and arrays that it refers to."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.network_digest import network_digest
from classifier_lens.runner.files.atomic import open_regular_file
from classifier_lens.runner.types import UserError
from classifier_lens.runner.user_code import source_files

# Values that a network refers to, with their names.
NamedValues = Iterator[tuple[str, nn.Module | Tensor | np.ndarray]]


def track_identity(classifier: ImageClassifier, target: str, files: Sequence[str]) -> ImageClassifier:
    """The classifier with a fingerprint that also covers the source files of the target, `find_external_state` and the
    user's extra files.

    If it has neither extra files nor weights, `untracked_dependencies` warns about it. Raises UserError for a file that
    cannot be read.
    """
    sha, network = hashlib.sha256(), classifier.network
    for file in [*source_files(target), *(Path(file).expanduser() for file in files)]:
        try:
            with open_regular_file(file) as opened:
                sha.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise UserError(
                f"classifier.extra_files={file}: {error.strerror}; expected files that can be read"
            ) from error
    external_state = find_external_state(network)
    for name, value in external_state:
        content = network_digest(value).encode() if isinstance(value, nn.Module) else _array_bytes(value)
        sha.update(name.encode() + content)
    classifier.fingerprint = repr((classifier.fingerprint, sha.hexdigest()))
    weights = [*network.parameters(), *network.buffers()] if isinstance(network, nn.Module) else []
    if not files and not weights:
        references = f"refers to {len(external_state)} networks and arrays" if external_state else "refers to none"
        classifier.untracked_dependencies = (
            f"{classifier.error_prefix}: has no registered weights and {references}, so a change of weights that it "
            "reads elsewhere is not noticed: name their files by classifier.extra_files=[...], or choose another "
            "outputs= when they change"
        )
    return classifier


def find_external_state(network: Any) -> list[tuple[str, nn.Module | Tensor | np.ndarray]]:
    """Networks and arrays that the outputs may depend on and that are not registered weights, by name.

    These are values that a function refers to and attributes of an object or module, also in lists, tuples and
    dictionaries.
    """
    if isinstance(network, nn.Module):
        return [
            (f"{path}.{name}", value)
            for path, module in network.named_modules() for name, value in _unregistered_attributes(module)
        ]  # fmt: skip
    if inspect.isroutine(network):
        owner = getattr(network, "__self__", None)
        owner_state = [] if owner is None or inspect.ismodule(owner) else find_external_state(owner)
        return [*_referenced_values(network), *owner_state]
    attributes = [*_nested_values("", vars(network))] if hasattr(network, "__dict__") else []
    return [*attributes, *_referenced_values(type(network).__call__)]


def _unregistered_attributes(module: nn.Module) -> NamedValues:
    """Attributes of a module that are neither parameters, saved buffers nor registered modules."""
    attributes = {
        name: value for name, value in vars(module).items() if name not in ("_parameters", "_buffers", "_modules")
    }
    yield from _nested_values("", attributes)
    yield from ((name, module._buffers[name]) for name in module._non_persistent_buffers_set)  # type: ignore[misc]


def _referenced_values(function: Callable[..., Any]) -> NamedValues:
    """Closure variables and globals of a function that is written in Python."""
    if inspect.isfunction(function := inspect.unwrap(getattr(function, "__func__", function))):
        variables = inspect.getclosurevars(function)
        yield from _nested_values("", {**variables.globals, **variables.nonlocals})


def _nested_values(path: str, value: Any) -> NamedValues:
    """Networks and arrays in nested mappings, lists and tuples, by their path."""
    if isinstance(value, (nn.Module, Tensor, np.ndarray)):
        yield path, value
    elif isinstance(value, Mapping):
        for name, element in value.items():
            yield from _nested_values(f"{path}/{name}", element)
    elif isinstance(value, (list, tuple)):
        for i, element in enumerate(value):
            yield from _nested_values(f"{path}/{i}", element)


def _array_bytes(value: Tensor | np.ndarray | None) -> bytes:
    """Type, shape and content of an array."""
    if value is None:
        return b""
    header = f"{value.dtype} {tuple(value.shape)}".encode()
    if isinstance(value, Tensor):
        return header + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if not value.dtype.hasobject:
        return header + value.tobytes()
    return header + repr([x for x in value.flat if isinstance(x, (str, bytes, int, float))]).encode()
