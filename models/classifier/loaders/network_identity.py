"""Identity of a user's network beyond its weights: its source files, and networks and arrays that it refers to."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
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

SITE_PACKAGES = {"site-packages", "dist-packages"}  # folders of installed packages, the second on Debian

# Values that a network refers to, with their names.
NamedValues = Iterator[tuple[str, nn.Module | Tensor | np.ndarray]]


def source_files(target: str) -> list[Path]:
    """The sorted source files of a target `file.py:name` or `module:name`.

    These are its file and the modules that it imports, directly or indirectly, from the folder of the file or below the
    folder that contains its package. Of an installed package it is the file alone.
    """
    source = target.rpartition(":")[0]
    file = source if source.endswith(".py") else getattr(sys.modules.get(source), "__file__", None)
    if file is None:
        return []
    first = Path(file).expanduser().resolve()
    if SITE_PACKAGES & set(first.parts):
        return [first]
    root = first.parent if source.endswith(".py") else first.parents[source.count(".") + (first.stem == "__init__")]
    visited, queue = set[Path](), [first]
    while queue:
        if (path := queue.pop()) not in visited:
            visited.add(path)
            queue += [file for name in _imported_modules(path, root) for file in _module_files(root, name)]
    return sorted(visited)


def _imported_modules(file: Path, root: Path) -> Iterator[str]:
    """The names, relative to `root`, of modules that a file may import; none if it cannot be parsed, as compiled
    modules and code for other versions of Python."""
    package = file.parent.relative_to(root).parts
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]


def _module_files(root: Path, name: str) -> Iterator[Path]:
    """The files of a module and of its parent packages below `root`."""
    path = root
    for part in name.split("."):
        path = path / part
        yield from (file for file in (path / "__init__.py", path.with_suffix(".py")) if part and file.is_file())


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
