"""Train a small classifier or oracle and save it in half precision, with its preprocessing and a model card.

    python scripts/train/classifier.py name=planted_shortcut
    python scripts/train/classifier.py name=mine architecture=resnet10t kwargs='{}' steps=500 out=outputs/train/mine
    python scripts/train/classifier.py data=cifar10 minutes=10
    python scripts/train/classifier.py name=hues shortcuts=planted_hues shortcut_strength=0.9 out=outputs/train/hues

conf/train/classifier.yaml has the keys and presets. Training continues from weights in `out`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save
from torch import Tensor, nn

from classifier_lens.data.image_selection import check_choice
from classifier_lens.data.shortcuts import class_strengths
from classifier_lens.models.devices import parse_device
from classifier_lens.runner.configuration.command_line import merge_overrides
from classifier_lens.runner.files.atomic import write_durable
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
from classifier_lens.scripts.train.one_cycle import (
    half_precision_state,
    one_cycle_steps,
    print_progress,
    shuffled_batches,
    to_dict,
    training_record,
    update_weights,
)
from classifier_lens.scripts.train.settings import ClassifierSettings, apply_overrides

PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear"}
COMMAND = "python scripts/train/classifier.py"


def build_network(cfg: DictConfig, outputs: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The network of `cfg`, with the weights in `cfg.out` if there are any, and the records of earlier runs.

    Raises UserError if the weights belong to another architecture.
    """
    torch.manual_seed(cfg.seed)
    kwargs = to_dict(cfg.kwargs)
    try:
        network = timm.create_model(cfg.architecture, num_classes=outputs, **kwargs)
    except Exception as error:  # timm's architectures raise many types for wrong settings
        raise UserError(f"architecture={cfg.architecture} kwargs={kwargs}: {first_line(error)}") from error
    out = ROOT / cfg.out
    if not (out / "model.safetensors").exists():
        return network, []
    config = json.loads((out / "config.json").read_text())
    if (config["architecture"], config["kwargs"]) != (cfg.architecture, kwargs):
        raise UserError(
            f"out={cfg.out}: has weights of {config['architecture']} with {config['kwargs']}; choose another `out`"
        )
    network.load_state_dict({key: value.float() for key, value in load_file(out / "model.safetensors").items()})
    return network, config["runs"]


def multi_head_loss(logits: Tensor, targets: Tensor, heads: Mapping[str, tuple[str, ...]]) -> Tensor:
    """Cross-entropy summed over the heads. logits: (b, all outputs); targets: (b, number of heads)."""
    total = logits.new_zeros(())
    for i, part in enumerate(logits.split([len(names) for names in heads.values()], dim=1)):
        total = total + F.cross_entropy(part, targets[:, i], ignore_index=IGNORE_INDEX)
    return total


def train(
    network: nn.Module, dataset: LabeledImages, cfg: DictConfig, device: torch.device, previous_steps: int
) -> int:
    """Train by AdamW on a one-cycle schedule for `cfg.steps` steps or `cfg.minutes`; returns the number of steps.

    `cfg.adversarial` attacks each batch first, with the network in evaluation mode (running statistics of batch norm).
    """
    network.to(device).to(memory_format=torch.channels_last).train()
    generator = torch.Generator(device).manual_seed(cfg.seed * 1_000_003 + previous_steps)
    augment = Augment(cfg.augment, generator)
    images, targets = dataset.images.to(device), dataset.targets.to(device)
    mean, std = (torch.tensor(PREPROCESSING[k], device=device).view(1, 3, 1, 1) for k in ("mean", "std"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    order = shuffled_batches(len(images), cfg.batch, generator)
    num_steps, started = 0, time.monotonic()
    for step in one_cycle_steps(optimizer, cfg):
        rows = next(order)

        def loss_at(x: Tensor, labels: Tensor = targets[rows]) -> Tensor:
            inputs = ((x - mean) / std).to(memory_format=torch.channels_last)
            return multi_head_loss(network(inputs), labels, dataset.heads)

        network.eval()
        attack = cfg.adversarial
        x = l2_pgd(loss_at, augment(images[rows].float() / 255), attack.epsilon, attack.step_size, attack.steps)
        network.train()
        loss = loss_at(x)
        update_weights(optimizer, network, loss)
        print_progress(step, loss.item(), started)
        num_steps = step + 1
    return num_steps


def save_classifier(
    network: nn.Module, dataset: LabeledImages, cfg: DictConfig, runs: Sequence[dict[str, Any]]
) -> None:
    """Write half-precision weights and config.json to `cfg.out`. runs: records of all training runs, oldest first."""
    config = {
        "architecture": cfg.architecture, "kwargs": to_dict(cfg.kwargs), "domain": cfg.data,
        "heads": dataset.heads, "size": dataset.images.shape[-1], **PREPROCESSING,
        "shortcuts": to_dict(cfg.shortcuts), "shortcut_strength": to_dict(cfg.shortcut_strength),
        "label_noise": cfg.label_noise, "adversarial": to_dict(cfg.adversarial), "runs": list(runs),
    }  # fmt: skip
    write_durable(ROOT / cfg.out / "model.safetensors", save(half_precision_state(network)))
    write_durable(ROOT / cfg.out / "config.json", json.dumps(config, indent=1) + "\n")


# --- command line --------------------------------------------------------------------------------------------


def load_settings(arguments: Sequence[str]) -> DictConfig:
    """Defaults, then the preset, then the command line. Raises UserError for invalid settings."""
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
    """Train, save and measure. Raises UserError for invalid settings and missing data."""
    cfg = load_settings(arguments)
    try:
        train_and_measure(cfg, arguments)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    print(f"saved {cfg.out}")


def train_and_measure(cfg: DictConfig, arguments: Sequence[str]) -> None:
    """Train unless `cfg.steps` is 0, then write the model card. Raises UserError or FileNotFoundError for missing
    data."""
    device = parse_device("device", cfg.device)
    if cfg.steps > 0:
        train_and_save(cfg, load_labeled_images(cfg, "train", cfg.images), device, arguments)
    write_model_card(cfg)


def train_and_save(cfg: DictConfig, dataset: LabeledImages, device: torch.device, arguments: Sequence[str]) -> None:
    """Train on images and save the weights. arguments: the command line, for the record of the run."""
    network, runs = build_network(cfg, sum(len(names) for names in dataset.heads.values()))
    started = time.monotonic()
    steps = train(network, dataset, cfg, device, sum(run["steps"] for run in runs))
    seconds = time.monotonic() - started
    run = training_record(COMMAND, arguments, cfg, steps, len(dataset.images), seconds, device.type)
    save_classifier(network, dataset, cfg, [*runs, run])


if __name__ == "__main__":
    sys.exit(run_main(main, sys.argv[1:]))
