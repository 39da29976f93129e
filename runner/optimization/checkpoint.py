"""The state of an unfinished batch on disk: one file of tensors, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from classifier_lens.runner.files.atomic import Damaged
from classifier_lens.runner.files.tensors import read_tensors, write_tensors
from classifier_lens.runner.optimization.loop import Origin, State


def save(path: Path, state: State, owner: Mapping[str, str]) -> None:
    """Write a state; the old file stays until the new one is complete. owner: what it belongs to, which `load` asks
    for."""
    tensors = {f"controls.{k}": v for k, v in state.controls.items()}
    tensors |= {f"best.{k}": v for k, v in state.best.items()}
    tensors |= {f"moments.{k}.{m}": v for k, moments in state.moments.items() for m, v in moments.items()}
    tensors |= {"best_total": state.best_total, "best_step": state.best_step}
    plain = {key: getattr(state, key) for key in ("step", "finished", "failed", "history", "seconds")}
    if state.origin is not None:
        tensors |= {f"found.{k}": v for k, v in state.origin.found.items()}
        plain["origin"] = {key: getattr(state.origin, key) for key in ("controls", "inject", "blend")}
    write_tensors(path, tensors, **owner, state=json.dumps(plain))


def load(path: Path, device: torch.device, owner: Mapping[str, str], steps: int) -> State:
    """Read a state back, bit for bit. steps: the most that its batch can have taken.

    Raises FileNotFoundError, and Damaged if the file is not what was saved or was saved for another owner.
    """
    file = read_tensors(path)
    if foreign := [name for name, text in owner.items() if file.texts.get(name) != text]:
        raise Damaged(f"belongs to another {foreign[0]}")
    tensors = {name: value.to(device) for name, value in file.tensors.items()}
    plain = json.loads(file.texts["state"])
    if plain["step"] > steps:
        raise Damaged(f"stands at step {plain['step']} of {steps}")
    if (origin := plain.pop("origin", None)) is not None:
        found = {k.removeprefix("found."): v for k, v in tensors.items() if k.startswith("found.")}
        plain["origin"] = Origin(**origin, found=found)
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in file.tensors.items():
        if name.startswith("moments."):
            _, control, moment = name.split(".")
            # Adam counts its steps on the CPU.
            moments.setdefault(control, {})[moment] = value if moment == "step" else value.to(device)
    return State(
        controls={k.removeprefix("controls."): v for k, v in tensors.items() if k.startswith("controls.")},
        best={k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")},
        best_total=tensors["best_total"], best_step=tensors["best_step"], moments=moments, **plain,
    )  # fmt: skip
