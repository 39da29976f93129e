"""What can become of a file: each kind of damage turns a path into something that nobody has written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def junk(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(max(path.stat().st_size, 64)))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes() or b"0")
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


def loop(path: Path) -> None:
    """A link to itself."""
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    """A pipe that nobody writes to: opening it would wait for ever."""
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    """A link to a device that never ends."""
    path.unlink()
    path.symlink_to("/dev/zero")


def other_json(path: Path) -> None:
    path.write_text('{"name": 3, "images": [1, 2]}')


def number(path: Path) -> None:
    path.write_text("42\n")


def other_tensors(path: Path) -> None:
    save_file({"other": torch.zeros(2, 3)}, path)


def other_shapes(path: Path) -> None:
    """The same tensors and texts, of which each tensor lost its last column."""
    with safe_open(path, "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}
        texts = file.metadata()
    save_file({name: v[..., :-1].clone() if v.ndim else v for name, v in held.items()}, path, texts)


def beyond(path: Path) -> None:
    """A state at a step that its batch never takes."""
    with safe_open(path, "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}
        texts = file.metadata()
    state = json.loads(texts.get("state", "{}"))
    save_file(held, path, {**texts, "state": json.dumps({**state, "step": 10**6})})


def without_texts(path: Path) -> None:
    with safe_open(path, "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}
    save_file(held, path)


def from_neighbour(neighbour: Path) -> Callable[[Path], None]:
    """A whole file of the same kind, but of another key or problem."""

    def exchanged(path: Path) -> None:
        shutil.copyfile(neighbour, path)

    return exchanged


Harm = Callable[[Path], None]
ANY: tuple[Harm, ...] = (empty, cut, lengthened, junk, zeros, flipped, folder, loop, pipe, endless, other_json, number)
OF_TENSORS: tuple[Harm, ...] = (*ANY, other_tensors, other_shapes, without_texts)
