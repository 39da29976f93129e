"""Train a small classifier or oracle and save it, half precision, with its preprocessing and a card.

    python scripts/train/classifier.py name=planted_shortcut
    python scripts/train/classifier.py name=mine architecture=resnet10t kwargs='{}' steps=500 out=outputs/train/mine
    python scripts/train/classifier.py data=cifar10 minutes=10
    python scripts/train/classifier.py name=hues shortcuts=planted_hues shortcut_strength=0.9 out=outputs/train/hues

Keys and presets are those of conf/train/classifier.yaml. A run continues from the weights already in `out`.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from classifier_lens.data.image_selection import check_choice
from classifier_lens.data.shortcuts import class_strengths
from classifier_lens.models.devices import parse_device
from classifier_lens.runner.configuration.command_line import merge_overrides
from classifier_lens.runner.paths import CONFIG_FOLDER, ROOT
from classifier_lens.runner.types import UserError, first_line
from classifier_lens.scripts.choices import run_main
from classifier_lens.scripts.train.adversarial import l2_pgd
from classifier_lens.scripts.train.augmentation import Augment
from classifier_lens.scripts.train.labeled_images import (
    DATASET_LOADERS,
    IGNORE_INDEX,
    LabeledImages,
    load_labeled_images,
)
from classifier_lens.scripts.train.measure_classifier import write_model_card
from classifier_lens.scripts.train.settings import ClassifierSettings, apply_overrides

PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"}
COMMAND = "python scripts/train/classifier.py"


def to_dict(cfg: DictConfig) -> dict[str, Any]:
    """A mapping of the configuration as a dict of Python's own types."""
    values = OmegaConf.to_container(cfg)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def build_network(cfg: DictConfig, outputs: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The network of `cfg`, with the weights in `cfg.out` if there are any, and the runs that made these.

    Raises UserError if those weights belong to another architecture.
    """
    torch.manual_seed(cfg.seed)
    kwargs = to_dict(cfg.kwargs)
    try:
        network = timm.create_model(cfg.architecture, num_classes=outputs, **kwargs)
    except Exception as error:  # whatever an architecture of timm says of its settings
        raise UserError(f"architecture={cfg.architecture} kwargs={kwargs}: {first_line(error)}") from error
    out = ROOT / cfg.out
    if not (out / "model.safetensors").exists():
        return network, []
    config = json.loads((out / "config.json").read_text())
    if (config["architecture"], config["kwargs"]) != (cfg.architecture, kwargs):
        raise UserError(
            f"out={cfg.out}: holds a {config['architecture']} with {config['kwargs']}; choose another `out`"
        )
    network.load_state_dict({key: value.float() for key, value in load_file(out / "model.safetensors").items()})
    return network, config["runs"]


def multi_head_loss(logits: Tensor, targets: Tensor, heads: Mapping[str, tuple[str, ...]]) -> Tensor:
    """Cross-entropy summed over the heads; logits (b, all outputs), targets (b, number of heads)."""
    total = logits.new_zeros(())
    for i, part in enumerate(logits.split([len(names) for names in heads.values()], dim=1)):
        total = total + F.cross_entropy(part, targets[:, i], ignore_index=IGNORE_INDEX)
    return total


def shuffled_batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers, endless: every picture once per pass, in a fresh order."""
    while True:
        yield from torch.randperm(n, generator=generator, device=generator.device).split(size)


def train(network: nn.Module, corpus: LabeledImages, cfg: DictConfig, device: torch.device, previous_steps: int) -> int:
    """AdamW on a one-cycle schedule for `cfg.steps` steps or `cfg.minutes`; returns the steps taken.

    `cfg.adversarial` attacks each batch first, on the network as it will be used (batch norm's running figures).
    """
    network.to(device).to(memory_format=torch.channels_last).train()
    generator = torch.Generator(device).manual_seed(cfg.seed * 1_000_003 + previous_steps)
    augment = Augment(cfg.augment, generator)
    images, targets = corpus.images.to(device), corpus.targets.to(device)
    mean, std = (torch.tensor(PREPROCESSING[k], device=device).view(1, 3, 1, 1) for k in ("mean", "std"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    order = shuffled_batches(len(images), cfg.batch, generator)
    started = time.monotonic()
    for step in range(cfg.steps):
        passed = (time.monotonic() - started) / (60 * cfg.minutes) if cfg.minutes else 0.0
        progress = max(step / cfg.steps, passed)
        if progress >= 1:
            return step
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * progress))
        rows = next(order)

        def loss_at(x: Tensor, answers: Tensor = targets[rows]) -> Tensor:
            seen = ((x - mean) / std).to(memory_format=torch.channels_last)
            return multi_head_loss(network(seen), answers, corpus.heads)

        network.eval()
        attack = cfg.adversarial
        x = l2_pgd(loss_at, augment(images[rows].float() / 255), attack.epsilon, attack.step_size, attack.steps)
        network.train()
        loss = loss_at(x)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            rate = (step + 1) / (time.monotonic() - started)
            print(f"step {step + 1} loss {loss.item():.4f} {rate:.2f} steps/s", flush=True)
    return cfg.steps


def save_classifier(network: nn.Module, corpus: LabeledImages, cfg: DictConfig, runs: Sequence[dict[str, Any]]) -> None:
    """Half-precision weights and config.json in `cfg.out`; `runs` says how the weights came about, oldest first."""
    out = ROOT / cfg.out
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        key: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for key, value in network.state_dict().items()
    }
    config = {
        "architecture": cfg.architecture, "kwargs": to_dict(cfg.kwargs), "domain": cfg.data,
        "heads": corpus.heads, "size": corpus.images.shape[-1], **PREPROCESSING,
        "shortcuts": to_dict(cfg.shortcuts), "shortcut_strength": to_dict(cfg.shortcut_strength),
        "label_noise": cfg.label_noise, "adversarial": to_dict(cfg.adversarial), "runs": list(runs),
    }  # fmt: skip
    for name, write in (
        ("model.safetensors", lambda path: save_file(weights, path)),
        ("config.json", lambda path: path.write_text(json.dumps(config, indent=1) + "\n")),
    ):
        write(out / f"{name}.tmp")
        (out / f"{name}.tmp").replace(out / name)


# --- command line --------------------------------------------------------------------------------------------


def load_settings(arguments: Sequence[str]) -> DictConfig:
    """Defaults, then the preset, then the command line. Raises UserError for what is not allowed."""
    base, cli = read_defaults(), merge_overrides(OmegaConf.create({}), arguments)
    presets = base.pop("presets")
    data = check_choice("data", cli.get("data", "planted"), DATASET_LOADERS)
    base.name = cli.get("name") or next(key for key, preset in presets.items() if preset.data == data)
    # A mapping under one of these keys replaces the one before it; mappings under other keys are merged.
    replaced_keys = ("kwargs", "shortcuts", "shortcut_strength", "scenes")
    preset = presets.get(str(base.name), OmegaConf.create({"data": data}))
    base.update({key: layer[key] for layer in (preset, cli) for key in replaced_keys if key in layer})
    base.merge_with({key: value for key, value in preset.items() if key not in replaced_keys})
    cfg = apply_overrides(ClassifierSettings, base, arguments)
    shortcuts = read_shortcuts(cfg.shortcuts)
    cfg.shortcut_strength = class_strengths(to_dict(cfg)["shortcut_strength"], shortcuts)
    if "shortcuts" in cli and not cfg.shortcut_strength:
        raise UserError(
            f"shortcuts={cli.shortcuts}: no shortcut has a strength; add one from 0 to 1, e.g. shortcut_strength=0.9"
        )
    cfg.shortcuts = {name: shortcuts[name] for name in cfg.shortcut_strength}
    return cfg


def read_defaults() -> DictConfig:
    """conf/train/classifier.yaml with its presets."""
    return DictConfig(OmegaConf.load(CONFIG_FOLDER / "train" / "classifier.yaml"))


def read_shortcuts(shortcuts: str | DictConfig) -> dict[str, Any]:
    """Class -> {factor: value}: a file of conf/train/shortcuts by its name, or a mapping as it is. Raises UserError for
    another name."""
    if isinstance(shortcuts, DictConfig):
        return to_dict(shortcuts)
    folder = CONFIG_FOLDER / "train" / "shortcuts"
    name = check_choice("shortcuts", shortcuts, sorted(path.stem for path in folder.glob("*.yaml")))
    return to_dict(DictConfig(OmegaConf.load(folder / f"{name}.yaml")))


def main(arguments: Sequence[str]) -> None:
    """Train, save and measure. Raises UserError for what the user can put right."""
    cfg = load_settings(arguments)
    try:
        train_and_measure(cfg, arguments)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    print(f"saved {cfg.out}")


def train_and_measure(cfg: DictConfig, arguments: Sequence[str]) -> None:
    """The training of `cfg`, if it has steps, and the card. Raises UserError or FileNotFoundError for its data."""
    device = parse_device("device", cfg.device)
    if cfg.steps > 0:
        corpus = load_labeled_images(cfg, "train", cfg.images)
        network, runs = build_network(cfg, sum(len(names) for names in corpus.heads.values()))
        started = time.monotonic()
        steps = train(network, corpus, cfg, device, sum(run["steps"] for run in runs))
        run = {
            "command": shlex.join([*COMMAND.split(), *arguments]), "steps": steps, "batch": cfg.batch,
            "images": len(corpus.images), "seconds": round(time.monotonic() - started), "device": device.type,
        }  # fmt: skip
        save_classifier(network, corpus, cfg, [*runs, run])
    write_model_card(cfg)


if __name__ == "__main__":
    sys.exit(run_main(main, sys.argv[1:]))
