"""The state of an unfinished batch on disk: one safetensors file, written atomically."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as serialise

from runner.files import write
from runner.optimize import Origin, State


def save(path: Path, state: State) -> None:
    """Write a state; the old file stays until the new one is complete."""
    tensors = {f"controls.{k}": v for k, v in state.controls.items()}
    tensors |= {f"best.{k}": v for k, v in state.best.items()}
    tensors |= {f"moments.{k}.{m}": v for k, moments in state.moments.items() for m, v in moments.items()}
    tensors |= {"best_total": state.best_total, "best_step": state.best_step}
    plain = {key: getattr(state, key) for key in ("step", "finished", "failed", "history", "seconds")}
    if state.origin is not None:
        tensors |= {f"found.{k}": v for k, v in state.origin.found.items()}
        plain["origin"] = {key: getattr(state.origin, key) for key in ("controls", "inject", "blend")}
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write(path, serialise(whole, metadata={"state": json.dumps(plain)}))


def load(path: Path, device: torch.device) -> State:
    """Read a state back, bit for bit; its tensors are copied, since kernels may round by how memory is aligned."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        plain = json.loads(file.metadata()["state"])
    if (origin := plain.pop("origin", None)) is not None:
        found = {k.removeprefix("found."): v for k, v in tensors.items() if k.startswith("found.")}
        plain["origin"] = Origin(**origin, found=found)
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("moments."):
            _, control, moment = name.split(".")
            # Adam counts its steps on the CPU.
            moments.setdefault(control, {})[moment] = value.cpu() if moment == "step" else value
    return State(
        controls={k.removeprefix("controls."): v for k, v in tensors.items() if k.startswith("controls.")},
        best={k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")},
        best_total=tensors["best_total"], best_step=tensors["best_step"], moments=moments, **plain,
    )  # fmt: skip
