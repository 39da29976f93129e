"""Training of one network on a one-cycle schedule, for a number of steps or of minutes, and its record."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

WARM_UP_STEPS = 100


def to_dict(cfg: DictConfig) -> dict[str, Any]:
    """A configuration section as a dict of built-in types."""
    values = OmegaConf.to_container(cfg)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def shuffled_batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of indices: each pass has every index once, in a new order."""
    while True:
        yield from torch.randperm(n, generator=generator, device=generator.device).split(size)


def one_cycle_steps(optimizer: torch.optim.Optimizer, cfg: DictConfig) -> Iterator[int]:
    """Steps 0, 1, … until `cfg.steps` or `cfg.minutes`, with the learning rate of each set before it.

    The rate rises over the first steps and falls by a cosine to 0, by steps or by time, whichever is further.
    """
    started = time.monotonic()
    for step in range(cfg.steps):
        elapsed_share = (time.monotonic() - started) / (60 * cfg.minutes) if cfg.minutes else 0.0
        progress = max(step / cfg.steps, elapsed_share)
        if progress >= 1:
            return
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * progress))
        yield step


def update_weights(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
    """One step of the optimizer, with the gradient's norm clipped to 1."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def print_progress(step: int, loss: float, started: float) -> None:
    """A line about the loss and the speed, every 100 steps. started: time of the first step, by `time.monotonic`."""
    if step % 100 == 99:
        rate = (step + 1) / (time.monotonic() - started)
        print(f"step {step + 1} loss {loss:.4f} {rate:.2f} steps/s", flush=True)


def half_precision_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's weights on the CPU, floating-point ones in half precision."""
    return {
        key: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for key, value in network.state_dict().items()
    }


def training_record(
    command: str, arguments: Sequence[str], cfg: DictConfig, steps: int, num_images: int, seconds: float, device: str
) -> dict[str, Any]:
    """A training run as the model card lists it."""
    return {
        "command": shlex.join([*command.split(), *arguments]), "steps": steps, "batch": cfg.batch,
        "images": num_images, "seconds": round(seconds), "device": device,
    }  # fmt: skip
