"""The state of an unfinished batch on disk: one file of tensors, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from classifier_lens.runner.files.atomic import DamagedFileError
from classifier_lens.runner.files.tensors import read_tensors, write_tensors
from classifier_lens.runner.optimization.loop import InitialChoice, OptimizationState


def save(path: Path, state: OptimizationState, run_identity: Mapping[str, str]) -> None:
    """Write a state; the old file stays until the new one is complete. run_identity: what the state belongs to, which
    `load` compares."""
    tensors = {f"controls.{k}": v for k, v in state.controls.items()}
    tensors |= {f"best.{k}": v for k, v in state.best_controls.items()}
    tensors |= {f"moments.{k}.{m}": v for k, moments in state.optimizer_state.items() for m, v in moments.items()}
    tensors |= {"best_loss": state.best_loss, "best_step": state.best_step}
    plain = {key: getattr(state, key) for key in ("step", "finished", "failures", "history", "seconds")}
    if state.initial_choice is not None:
        tensors |= {f"precomputed.{k}": v for k, v in state.initial_choice.precomputed.items()}
        plain["candidate_indices"] = state.initial_choice.candidate_indices
    write_tensors(path, tensors, **run_identity, state=json.dumps(plain))


def load(path: Path, device: torch.device, run_identity: Mapping[str, str], steps: int) -> OptimizationState:
    """The saved state, bit for bit. steps: the largest number of steps of the batch.

    Raises FileNotFoundError, and DamagedFileError if the file is damaged or belongs to another run or other problems.
    """
    file = read_tensors(path)
    if different := [name for name, text in run_identity.items() if file.metadata.get(name) != text]:
        raise DamagedFileError(f"belongs to another {different[0]}")
    tensors = {name: value.to(device) for name, value in file.tensors.items()}
    plain = json.loads(file.metadata["state"])
    if plain["step"] > steps:
        raise DamagedFileError(f"stands at step {plain['step']} of {steps}")
    if (indices := plain.pop("candidate_indices", None)) is not None:
        precomputed = {k.removeprefix("precomputed."): v for k, v in tensors.items() if k.startswith("precomputed.")}
        plain["initial_choice"] = InitialChoice(indices, precomputed)
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in file.tensors.items():
        if name.startswith("moments."):
            _, control, moment = name.split(".")
            # Adam counts its steps on the CPU.
            moments.setdefault(control, {})[moment] = value if moment == "step" else value.to(device)
    return OptimizationState(
        controls={k.removeprefix("controls."): v for k, v in tensors.items() if k.startswith("controls.")},
        best_controls={k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")},
        best_loss=tensors["best_loss"], best_step=tensors["best_step"], optimizer_state=moments, **plain,
    )  # fmt: skip
