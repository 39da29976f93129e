"""Code of the user, named as `module:name` or `file.py:name`: its objects, its source files and its errors."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from classifier_lens.runner.paths import CODE_FOLDERS
from classifier_lens.runner.types import UserError, first_line

SITE_PACKAGES = {"site-packages", "dist-packages"}  # folders of installed packages, the second on Debian
# Prefixes of files that are not the user's code. An error there is located at the user's line that led to it.
_FOREIGN_PREFIXES = (
    "<", *(str(folder) + os.sep for folder in CODE_FOLDERS), sysconfig.get_path("stdlib") + os.sep,
    *(folder + os.sep for folder in (*site.getsitepackages(), site.getusersitepackages())),
)  # fmt: skip


def load_callable(target: str | Callable[..., Any], key: str) -> Callable[..., Any]:
    """The user's function of images.

    Args:
        target: the function or `torch.nn.Module`, or its name as `module:name` or `file.py:name`. A function without
            required arguments is called once and has to return such an object.
        key: configuration key and value that begin error messages.

    Raises:
        UserError: with the file and line of the user's code, if that fails.
    """
    if not isinstance(target, str):
        return _create_callable(target, key)
    with _import_path(target):
        return _create_callable(_import_target(target, key), key)


def _create_callable(target: Any, key: str) -> Any:
    """The target itself if it takes images, otherwise its return value. Raises UserError for other objects."""
    if not callable(target):
        raise UserError(f"{key}: {type(target).__name__} cannot be called with images")
    if isinstance(target, nn.Module) or not _has_no_required_parameters(target):
        return target
    try:
        created = target()
    except Exception as error:  # the user's code may raise any exception
        raise UserError(f"{key}: {describe_error(error)}") from error
    if not callable(created):
        raise UserError(f"{key}: returns a {type(created).__name__}, which cannot be called with images")
    return created


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
    afterwards it is the last, since the function may import modules when it is called."""
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


def describe_error(error: BaseException) -> str:
    """The type and message of an error in one line, with the file and line of the user's code where it occurred."""
    return f"{type(error).__name__}: {first_line(error)}{error_location(error)}"


def error_location(error: BaseException) -> str:
    """The last file and line of the user's code in the traceback; empty if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    user_frames = [frame for frame in frames if not frame.filename.startswith(_FOREIGN_PREFIXES)]
    return f" ({user_frames[-1].filename}, line {user_frames[-1].lineno})" if user_frames else ""
