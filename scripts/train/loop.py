"""What the scripts that train networks share: their settings, and the loop."""

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
    """The defaults in conf/train/<name>_<data>.yaml with the command line's changes, and where to train.

    Raises UserError for what is not allowed, and for a device that is not there.
    """
    data = merge_overrides(OmegaConf.create({"data": DATASETS[0]}), arguments)["data"]
    check_choice("data", data, [known for known in DATASETS if _defaults(name, known).exists()])
    cfg = apply_overrides(RESUMABLE[name], DictConfig(OmegaConf.load(_defaults(name, data))), arguments)
    return cfg, parse_device("device", cfg.device)


def _defaults(name: str, data: str) -> Path:
    return CONFIG_FOLDER / "train" / f"{name}_{data}.yaml"


def ema_with_warmup(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential average whose memory grows with the steps seen, so that early weights do not linger."""

    @torch.no_grad()
    def update(averages: Any, values: Any, seen: Any) -> None:
        n = float(seen)
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def fit(name: str, model: nn.Module, loss_fn: Callable[[Any, torch.Generator], Tensor], cfg: Any, lr: float) -> Any:
    """Adam with warm-up until `cfg.minutes` are over; returns the exponential average of the weights.

    The state in `cfg.work` is written every `cfg.save_every` seconds, so a killed run goes on from there.
    """
    device = next(model.parameters()).device
    state_path = ROOT / cfg.work / f"{name}.pt"
    state_path.parent.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.99), weight_decay=1e-4
    )
    average = AveragedModel(model, multi_avg_fn=ema_with_warmup(cfg.ema_decay))
    step = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    def save() -> None:
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step}, state_path.with_suffix(".tmp"))
        state_path.with_suffix(".tmp").replace(state_path)

    started = saved = time.monotonic()
    first, total = step, 0.0
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
        average.update_parameters(model)
        step += 1
        total += loss.item()
        if step % 100 == 0:
            rate = (step - first) / (now - started + 1e-9)
            print(f"{name} step {step} loss {total / 100:.5f} {rate:.2f} steps/s", flush=True)
            total = 0.0
        if now - saved > cfg.save_every:
            save()
            saved = now
    save()
    return average.module.eval()
