"""The settings and the training loop of generators, students and segmenters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from classifier_lens.data.image_selection import check_choice
from classifier_lens.models.devices import parse_device
from classifier_lens.runner.configuration.command_line import merge_overrides
from classifier_lens.runner.paths import CONFIG_FOLDER, ROOT
from classifier_lens.scripts.train.settings import RESUMABLE, apply_overrides

DATASETS = ("planted", "cifar10")


def load_settings(name: str, arguments: Sequence[str]) -> tuple[Any, torch.device]:
    """The settings in conf/train/<name>_<data>.yaml with the overrides of the command line, and the device.

    Raises UserError for invalid settings and for a missing device.
    """
    data = merge_overrides(OmegaConf.create({"data": DATASETS[0]}), arguments)["data"]
    check_choice("data", data, [dataset for dataset in DATASETS if _defaults(name, dataset).exists()])
    cfg = apply_overrides(RESUMABLE[name], DictConfig(OmegaConf.load(_defaults(name, data))), arguments)
    return cfg, parse_device("device", cfg.device)


def _defaults(name: str, data: str) -> Path:
    return CONFIG_FOLDER / "train" / f"{name}_{data}.yaml"


def ema_with_warmup(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential moving average whose decay grows with the number of steps, so that initial weights do not persist."""

    @torch.no_grad()
    def update(ema_weights: Any, weights: Any, num_steps: Any) -> None:
        n = float(num_steps)
        torch._foreach_lerp_(ema_weights, weights, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def fit(name: str, model: nn.Module, loss_fn: Callable[[Any, torch.Generator], Tensor], cfg: Any, lr: float) -> Any:
    """Train by AdamW with warm-up for `cfg.minutes`; returns the exponential moving average of the model.

    The state is saved to `cfg.work` every `cfg.save_every` seconds, so that a stopped training continues from there.
    """
    device = next(model.parameters()).device
    state_path = ROOT / cfg.work / f"{name}.pt"
    state_path.parent.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.99), weight_decay=1e-4
    )
    ema_model = AveragedModel(model, multi_avg_fn=ema_with_warmup(cfg.ema_decay))
    step = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        ema_model.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    def save() -> None:
        state = {"model": model.state_dict(), "average": ema_model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step}, state_path.with_suffix(".tmp"))
        state_path.with_suffix(".tmp").replace(state_path)

    started = saved = time.monotonic()
    first_step, loss_sum = step, 0.0
    model.train()
    while (now := time.monotonic()) - started < 60 * cfg.minutes:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 500)
        generator = torch.Generator(device).manual_seed(cfg.seed * 1_000_003 + step)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.bfloat16):
            loss = loss_fn(model, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema_model.update_parameters(model)
        step += 1
        loss_sum += loss.item()
        if step % 100 == 0:
            rate = (step - first_step) / (now - started + 1e-9)
            print(f"{name} step {step} loss {loss_sum / 100:.5f} {rate:.2f} steps/s", flush=True)
            loss_sum = 0.0
        if now - saved > cfg.save_every:
            save()
            saved = now
    save()
    return ema_model.module.eval()
