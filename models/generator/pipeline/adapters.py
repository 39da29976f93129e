"""Adapters: low-rank updates of a pipeline's weights (Hu et al., 2022), checked as a whole before they are added."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from classifier_lens.models.hub import local_folder
from classifier_lens.runner.types import UserError, first_line

LORA_FILE = "pytorch_lora_weights.safetensors"
WANTED = "expected an adapter that was trained on this UNet"
# The two factors and the scale of an update, as PEFT, diffusers and Kohya's trainers name them.
FACTOR_PATTERNS = {
    "down": re.compile(r"(.+?)\.(?:lora_A(?:\.default)?|lora_down|(?:lora\.|lora_linear_layer\.)?down)\.weight"),
    "up": re.compile(r"(.+?)\.(?:lora_B(?:\.default)?|lora_up|(?:lora\.|lora_linear_layer\.)?up)\.weight"),
    "alpha": re.compile(r"(.+)\.alpha"),
}  # fmt: skip
# Former names of attention layers in diffusers, and the present ones.
LEGACY_LAYER_NAMES = (
    (re.compile(r"\.processor\.to_out_lora$"), ".to_out.0"), (re.compile(r"\.processor\.to_([qkv])_lora$"), r".to_\1"),
    (re.compile(r"\.to_out_lora$"), ".out_proj"), (re.compile(r"\.to_([qkv])_lora$"), r".\1_proj"),
)  # fmt: skip


@dataclass
class LowRankUpdate:
    """The update of one layer: down "r i …", up "o r …", whose product is added, scaled by α / rank; rank r."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None

    def fits(self, weight: Tensor) -> bool:
        """Whether both factors exist, and their product has the shape of a weight."""
        if self.down is None or self.up is None or not len(self.down):
            return False
        if not self.down.is_floating_point() or not self.up.is_floating_point():  # quantized ones have scales elsewhere
            return False
        ones = (1,) * (weight.ndim - 2)
        return self.down.shape[1:] == weight.shape[1:] and self.up.shape == (len(weight), *self.down.shape[:1], *ones)

    @property
    def shape(self) -> str:
        """The shape of the product, as far as it is known, with the type of factors that are quantized."""
        rows = ("?",) if self.up is None else tuple(self.up.shape[:1])
        factors = [factor for factor in (self.down, self.up) if factor is not None]
        types = "".join(f" of {factor.dtype}" for factor in factors[:1] if not factor.is_floating_point())
        rank = " of rank 0" if self.down is not None and not len(self.down) else ""
        return " x ".join(map(str, (*rows, *(("?",) if self.down is None else self.down.shape[1:])))) + types + rank

    def product(self) -> Tensor:
        """up · down, in the shape of the weight."""
        assert self.down is not None and self.up is not None
        down, up = self.down.float(), self.up.float()
        if down.ndim == 2:
            return up @ down
        if down.shape[2:] == (1, 1):
            return (up[:, :, 0, 0] @ down[:, :, 0, 0])[:, :, None, None]
        return F.conv2d(down.transpose(0, 1), up).transpose(0, 1)


@dataclass(frozen=True)
class LoraAdapter:
    """updates: by layer, as named in the file; settings: PEFT's, by component of the pipeline."""

    updates: dict[str, LowRankUpdate] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def scale(self, component: str, layer: str, update: LowRankUpdate) -> float:
        """The factor of an update: α / rank."""
        assert update.down is not None
        prefix = f"{component}."
        settings = {name.removeprefix(prefix): v for name, v in self.settings.items() if name.startswith(prefix)}
        rank, alpha = len(update.down), update.alpha
        if alpha is None:
            patterns = (settings.get("alpha_pattern") or {}).items()
            matching = [value for pattern, value in patterns if re.fullmatch(rf"(.*\.)?({pattern})", layer)]
            alpha = matching[0] if matching else settings.get("lora_alpha", rank)
        return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


@torch.no_grad()
def fuse_lora(pipe: StableDiffusionPipeline, lora: str, needs: str | None = None) -> None:
    """Add an adapter's updates to the weights of the UNet, and of the text encoder if it has some.

    lora: a safetensors file, a folder with one, or a hub id whose files are in the hub's cache; needs: see
    `models.hub.local_folder`. Raises UserError unless all updates fit and at least one of them is not 0.
    """
    key = f"generator.lora={lora}"
    adapter = _read(key, _file(key, local_folder(key, lora, None, needs, allow_file=True)))
    known_layers = _layers_by_name(pipe)
    located = {name: _component_and_layer(name) for name in adapter.updates}
    layers = {name: (at[0], known_layers[at]) for name, at in located.items() if at in known_layers}
    weights = {
        name: getattr(pipe, component).get_parameter(f"{layer}.weight") for name, (component, layer) in layers.items()
    }
    _check(key, adapter, weights)
    if all(component != "unet" for component, _ in layers.values()):
        raise UserError(f"{key}: 0 of its {len(layers)} changes are of the UNet, all of the text encoder; {WANTED}")
    changed = False
    for name, (component, layer) in layers.items():
        update = adapter.updates[name]
        difference = (update.product() * _scale(key, adapter, component, layer, update)).to(weights[name])
        if not difference.isfinite().all():
            raise UserError(f"{key}: its change of {name} is not finite; {WANTED}")
        changed |= bool(difference.any())
        weights[name] += difference
    if not changed:
        raise UserError(f"{key}: all of its {len(layers)} changes are 0; {WANTED}")


def _scale(key: str, adapter: LoraAdapter, component: str, layer: str, update: LowRankUpdate) -> float:
    """See `LoraAdapter.scale`. Raises UserError for invalid settings."""
    try:
        return adapter.scale(component, layer, update)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        message = f"its settings of lora_alpha or alpha_pattern cannot be read ({first_line(error)})"
        raise UserError(f"{key}: {message}; expected numbers") from error


def _file(key: str, path: Path) -> Path:
    """The weight file at a path. Raises UserError if there is none, or more than one."""
    if path.is_file() or (path / LORA_FILE).is_file():
        return path if path.is_file() else path / LORA_FILE
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:5]) or "no file of safetensors"
        raise UserError(f"{key}: holds {names}; expected {LORA_FILE}, or the path of one file")
    return files[0]


def _read(key: str, file: Path) -> LoraAdapter:
    """The adapter in a file. Raises UserError if it cannot be read, or holds other than plain low-rank updates."""
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as opened:
            settings = dict(json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}")))
        if (config := file.with_name("adapter_config.json")).is_file():
            settings = {f"unet.{name}": value for name, value in dict(json.loads(config.read_text("utf-8"))).items()}
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{key}: {file.name} cannot be read ({first_line(error)}); expected safetensors") from error
    adapter, unknown = LoraAdapter(settings=settings), []
    for name, tensor in tensors.items():
        matches = [(kind, match[1]) for kind, pattern in FACTOR_PATTERNS.items() if (match := pattern.fullmatch(name))]
        if not matches or (matches[0][0] == "alpha" and tensor.numel() != 1):
            unknown.append(name)
            continue
        kind, layer = matches[0]
        setattr(adapter.updates.setdefault(layer, LowRankUpdate()), kind, tensor.item() if kind == "alpha" else tensor)
    unknown += [name for name, value in settings.items() if name.endswith(".use_dora") and value]
    if unknown:
        raise UserError(
            f"{key}: {len(unknown)} of {len(tensors)} entries of {file.name}, such as {unknown[0]}, are no plain "
            "low-rank changes (lora_A and lora_B, or lora_down and lora_up); no others can be added"
        )
    return adapter


def _layers_by_name(pipe: StableDiffusionPipeline) -> dict[tuple[str, str], str]:
    """The layers of the UNet and the text encoder that have weights, by component and every spelling of their names:
    with points or underscores, and with CLIP's former `text_model` or without."""
    layers: dict[tuple[str, str], str] = {}
    for component in ("unet", "text_encoder"):
        for layer, module in getattr(pipe, component).named_modules():
            if isinstance(getattr(module, "weight", None), Tensor):
                for name in (layer, f"text_model.{layer}"):
                    layers[component, name] = layers[component, name.replace(".", "_")] = layer
    return layers


def _component_and_layer(name: str) -> tuple[str, str]:
    """The component of the pipeline and the layer in it that a name in the file means."""
    for prefix, component in (("lora_unet_", "unet"), ("lora_te_", "text_encoder"), ("lora_te1_", "text_encoder")):
        if name.startswith(prefix):
            return component, name.removeprefix(prefix)
    path = name.removeprefix("base_model.model.")
    for pattern, new in LEGACY_LAYER_NAMES:
        path = pattern.sub(new, path)
    component, _, layer = path.partition(".")
    return (component, layer) if component in ("unet", "text_encoder") else ("unet", path)


def _check(key: str, adapter: LoraAdapter, weights: Mapping[str, Tensor]) -> None:
    """Raise UserError, with numbers, unless every update has the shape of a layer of the pipeline."""
    absent = [name for name in adapter.updates if name not in weights]
    mismatched = [name for name, weight in weights.items() if not adapter.updates[name].fits(weight)]
    if not absent and not mismatched and weights:
        return
    parts = [f"{len(weights) - len(mismatched)} of its {len(adapter.updates)} changes fit this pipeline"]
    if absent:
        parts.append(f"{len(absent)} are of layers that it has not, such as {absent[0]}")
    if mismatched:
        expected = " x ".join(map(str, weights[mismatched[0]].shape))
        shape = adapter.updates[mismatched[0]].shape
        parts.append(f"{len(mismatched)} are of other widths, such as {mismatched[0]} ({shape}, here {expected})")
    raise UserError(f"{key}: {'; '.join(parts)}; {WANTED}")
