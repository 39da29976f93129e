"""What can be seen of a user's own network beside its weights: its code, and values that it keeps elsewhere."""

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

from classifier_lens.models.classifier.image_classifier import ImageClassifier, network_digest
from classifier_lens.runner.files.atomic import open_regular_file
from classifier_lens.runner.types import UserError

SITE_PACKAGES = {"site-packages", "dist-packages"}  # where Python keeps packages, and Debian's does


def source_files(target: str) -> list[Path]:
    """The file that a target `file.py:name` or `module:name` names, and those that it imports from its own folder, or,
    if it is a module of a package, from below the package's folder; and what these import from there. Sorted; of an
    installed package that file alone."""
    place = target.rpartition(":")[0]
    file = place if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    if file is None:
        return []
    first = Path(file).expanduser().resolve()
    if SITE_PACKAGES & set(first.parts):
        return [first]
    root = first.parent if place.endswith(".py") else first.parents[place.count(".") + (first.stem == "__init__")]
    found, waiting = set[Path](), [first]
    while waiting:
        if (path := waiting.pop()) not in found:
            found.add(path)
            waiting += [other for name in _imported(path, root) for other in _files(root, name)]
    return sorted(found)


def _imported(file: Path, root: Path) -> Iterator[str]:
    """The names of the modules that a file may import from below `root`, as if they were imported from there; none of
    one that is no Python of this version: compiled ones, and what nothing imports but on other machines."""
    package = file.parent.relative_to(root).parts
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]


def _files(root: Path, name: str) -> Iterator[Path]:
    """The files that a module's name stands for below `root`, those of its packages among them."""
    place = root
    for part in name.split("."):
        place = place / part
        yield from (file for file in (place / "__init__.py", place.with_suffix(".py")) if part and file.is_file())


def track_identity(classifier: ImageClassifier, target: str, files: Sequence[str]) -> ImageClassifier:
    """A user's classifier whose recipe covers its code, values that it keeps outside its weights as far as they can be
    seen (see `kept`), and the files that the user names; what is left unseen it says itself. Raises UserError for a
    file that cannot be read."""
    sha, network = hashlib.sha256(), classifier.network
    for file in [*source_files(target), *(Path(file).expanduser() for file in files)]:
        try:
            with open_regular_file(file) as opened:
                sha.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise UserError(
                f"classifier.extra_files={file}: {error.strerror}; wanted are files that can be read"
            ) from error
    for name, value in (found := find_external_state(network)):
        sha.update(name.encode() + (network_digest(value).encode() if isinstance(value, nn.Module) else _bytes(value)))
    classifier.fingerprint = repr((classifier.fingerprint, sha.hexdigest()))
    weights = [*network.parameters(), *network.buffers()] if isinstance(network, nn.Module) else []
    if not files and not weights:
        seen = f"{len(found)} networks and arrays that it refers to" if found else "none that it refers to"
        classifier.untracked_dependencies = (
            f"{classifier.error_prefix}: has no weights that are surely all of its own ({seen} were seen): where it "
            "reads others, name their files by classifier.extra_files=[...], or choose another "
            "outputs= when they change"
        )
    return classifier


def find_external_state(network: Any) -> list[tuple[str, nn.Module | Tensor | np.ndarray]]:
    """Networks and arrays, by name, that a function refers to, that an object has as attributes, or that a network has
    as attributes which are no weights of its own; those in lists, tuples and dictionaries among them."""
    if isinstance(network, nn.Module):
        return [
            (f"{place}.{name}", value)
            for place, module in network.named_modules() for name, value in _attributes(module)
        ]  # fmt: skip
    if inspect.isroutine(network):
        owner = getattr(network, "__self__", None)
        return [*_referred(network), *([] if owner is None or inspect.ismodule(owner) else find_external_state(owner))]
    own = [*_values("", vars(network))] if hasattr(network, "__dict__") else []
    return [*own, *_referred(type(network).__call__)]


def _attributes(module: nn.Module) -> Iterator[tuple[str, nn.Module | Tensor | np.ndarray]]:
    """What a module has beside its parameters and saved buffers and the modules that it registered."""
    plain = {name: value for name, value in vars(module).items() if name not in _REGISTERED}
    yield from _values("", plain)
    yield from ((name, module._buffers[name]) for name in module._non_persistent_buffers_set)  # type: ignore[misc]


_REGISTERED = ("_parameters", "_buffers", "_modules")


def _referred(function: Callable[..., Any]) -> Iterator[tuple[str, nn.Module | Tensor | np.ndarray]]:
    """What a function written in Python closes over, and globals that it names."""
    if inspect.isfunction(function := inspect.unwrap(getattr(function, "__func__", function))):
        seen = inspect.getclosurevars(function)
        yield from _values("", {**seen.globals, **seen.nonlocals})


def _values(place: str, value: Any) -> Iterator[tuple[str, nn.Module | Tensor | np.ndarray]]:
    """Networks and arrays in a value, and in what it holds."""
    if isinstance(value, (nn.Module, Tensor, np.ndarray)):
        yield place, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _values(f"{place}/{name}", one)
    elif isinstance(value, (list, tuple)):
        for i, one in enumerate(value):
            yield from _values(f"{place}/{i}", one)


def _bytes(value: Tensor | np.ndarray | None) -> bytes:
    """What an array holds, and its type and shape."""
    if value is None:
        return b""
    kind = f"{value.dtype} {tuple(value.shape)}".encode()
    if isinstance(value, Tensor):
        return kind + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if not value.dtype.hasobject:
        return kind + value.tobytes()
    return kind + repr([one for one in value.flat if isinstance(one, (str, bytes, int, float))]).encode()
