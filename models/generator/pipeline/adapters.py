"""Adapters: low-rank changes of a pipeline's weights (Hu et al., 2022), looked through as a whole before they are
added."""

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
WANTED = "wanted is an adapter that was trained on this UNet"
# The two halves and the scale of a change, as PEFT, diffusers and Kohya's trainers call them.
FACTOR_PATTERNS = {
    "down": re.compile(r"(.+?)\.(?:lora_A(?:\.default)?|lora_down|(?:lora\.|lora_linear_layer\.)?down)\.weight"),
    "up": re.compile(r"(.+?)\.(?:lora_B(?:\.default)?|lora_up|(?:lora\.|lora_linear_layer\.)?up)\.weight"),
    "alpha": re.compile(r"(.+)\.alpha"),
}  # fmt: skip
# Layers of attention as diffusers called them before: what stood there, and what it is now.
LEGACY_LAYER_NAMES = (
    (re.compile(r"\.processor\.to_out_lora$"), ".to_out.0"), (re.compile(r"\.processor\.to_([qkv])_lora$"), r".to_\1"),
    (re.compile(r"\.to_out_lora$"), ".out_proj"), (re.compile(r"\.to_([qkv])_lora$"), r".\1_proj"),
)  # fmt: skip


@dataclass
class LowRankUpdate:
    """What a file says of one layer: down "r i …", up "o r …", whose product is added `scale` times; rank r."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None

    def fits(self, weight: Tensor) -> bool:
        """Whether both halves are there, and their product has the shape of a weight."""
        if self.down is None or self.up is None or not len(self.down):
            return False
        if not self.down.is_floating_point() or not self.up.is_floating_point():  # quantized ones have scales elsewhere
            return False
        ones = (1,) * (weight.ndim - 2)
        return self.down.shape[1:] == weight.shape[1:] and self.up.shape == (len(weight), *self.down.shape[:1], *ones)

    @property
    def shape(self) -> str:
        """That of the product, as far as the halves tell, with their type where it is none of weights."""
        rows = ("?",) if self.up is None else tuple(self.up.shape[:1])
        halves = [half for half in (self.down, self.up) if half is not None]
        types = "".join(f" of {half.dtype}" for half in halves[:1] if not half.is_floating_point())
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
    """changes: by layer, as the file calls it; settings: PEFT's, of each part of a pipeline that brings such."""

    changes: dict[str, LowRankUpdate] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def scale(self, part: str, layer: str, change: LowRankUpdate) -> float:
        """What a change is multiplied by: α / rank."""
        assert change.down is not None
        told = {name.removeprefix(f"{part}."): v for name, v in self.settings.items() if name.startswith(f"{part}.")}
        rank, alpha = len(change.down), change.alpha
        if alpha is None:
            patterns = (told.get("alpha_pattern") or {}).items()
            own = [value for pattern, value in patterns if re.fullmatch(rf"(.*\.)?({pattern})", layer)]
            alpha = own[0] if own else told.get("lora_alpha", rank)
        return float(alpha) / (math.sqrt(rank) if told.get("use_rslora") else rank)


@torch.no_grad()
def fuse_lora(pipe: StableDiffusionPipeline, lora: str, needs: str | None = None) -> None:
    """Add an adapter's changes to the weights of the UNet, and of the text encoder where it has such.

    lora: a file of safetensors, a folder with one, or a hub id whose files are in the hub's cache; needs: see
    `models.hub.local_folder`. Raises UserError unless all of the changes fit and at least one of them is not 0.
    """
    key = f"generator.lora={lora}"
    adapter = _read(key, _file(key, local_folder(key, lora, None, needs, allow_file=True)))
    known = _known(pipe)
    meant = {name: _meant(name) for name in adapter.changes}
    layers = {name: (place[0], known[place]) for name, place in meant.items() if place in known}
    weights = {name: getattr(pipe, part).get_parameter(f"{layer}.weight") for name, (part, layer) in layers.items()}
    _check(key, adapter, weights)
    if all(part != "unet" for part, _ in layers.values()):
        raise UserError(f"{key}: 0 of its {len(layers)} changes are of the UNet, all of the text encoder; {WANTED}")
    changed = False
    for name, (part, layer) in layers.items():
        change = adapter.changes[name]
        added = (change.product() * _scale(key, adapter, part, layer, change)).to(weights[name])
        if not added.isfinite().all():
            raise UserError(f"{key}: its change of {name} is not finite; {WANTED}")
        changed |= bool(added.any())
        weights[name] += added
    if not changed:
        raise UserError(f"{key}: all of its {len(layers)} changes are 0; {WANTED}")


def _scale(key: str, adapter: LoraAdapter, part: str, layer: str, change: LowRankUpdate) -> float:
    """See `LoraAdapter.scale`. Raises UserError for settings that nobody can read so."""
    try:
        return adapter.scale(part, layer, change)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        said = f"its settings of lora_alpha or alpha_pattern cannot be read ({first_line(error)})"
        raise UserError(f"{key}: {said}; wanted are numbers") from error


def _file(key: str, path: Path) -> Path:
    """The file of weights that a path names. Raises UserError if there is none, or more than one."""
    if path.is_file() or (path / LORA_FILE).is_file():
        return path if path.is_file() else path / LORA_FILE
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        said = ", ".join(file.name for file in found[:5]) or "no file of safetensors"
        raise UserError(f"{key}: holds {said}; wanted is {LORA_FILE}, or the path of one file")
    return found[0]


def _read(key: str, file: Path) -> LoraAdapter:
    """What a file holds. Raises UserError if it cannot be read, or holds other changes than plain low-rank ones."""
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as opened:
            settings = dict(json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}")))
        if (beside := file.with_name("adapter_config.json")).is_file():
            settings = {f"unet.{name}": value for name, value in dict(json.loads(beside.read_text("utf-8"))).items()}
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{key}: {file.name} cannot be read ({first_line(error)}); wanted are safetensors") from error
    adapter, strange = LoraAdapter(settings=settings), []
    for name, tensor in tensors.items():
        ends = [(end, match[1]) for end, kind in FACTOR_PATTERNS.items() if (match := kind.fullmatch(name))]
        if not ends or (ends[0][0] == "alpha" and tensor.numel() != 1):
            strange.append(name)
            continue
        end, layer = ends[0]
        setattr(adapter.changes.setdefault(layer, LowRankUpdate()), end, tensor.item() if end == "alpha" else tensor)
    strange += [name for name, value in settings.items() if name.endswith(".use_dora") and value]
    if strange:
        raise UserError(
            f"{key}: {len(strange)} of {len(tensors)} entries of {file.name}, such as {strange[0]}, are no plain "
            "low-rank changes (lora_A and lora_B, or lora_down and lora_up); no others can be added"
        )
    return adapter


def _known(pipe: StableDiffusionPipeline) -> dict[tuple[str, str], str]:
    """The layers of the UNet and the text encoder that have weights, by their part and by every way to write their
    names: with points or underlines, and with CLIP's former `text_model` or without."""
    known: dict[tuple[str, str], str] = {}
    for part in ("unet", "text_encoder"):
        for layer, module in getattr(pipe, part).named_modules():
            if isinstance(getattr(module, "weight", None), Tensor):
                for name in (layer, f"text_model.{layer}"):
                    known[part, name] = known[part, name.replace(".", "_")] = layer
    return known


def _meant(name: str) -> tuple[str, str]:
    """The part of the pipeline, and the layer in it, that a file's name stands for."""
    for prefix, part in (("lora_unet_", "unet"), ("lora_te_", "text_encoder"), ("lora_te1_", "text_encoder")):
        if name.startswith(prefix):
            return part, name.removeprefix(prefix)
    own = name.removeprefix("base_model.model.")
    for pattern, new in LEGACY_LAYER_NAMES:
        own = pattern.sub(new, own)
    part, _, layer = own.partition(".")
    return (part, layer) if part in ("unet", "text_encoder") else ("unet", own)


def _check(key: str, adapter: LoraAdapter, weights: Mapping[str, Tensor]) -> None:
    """Raise UserError, with numbers, unless every change is one of a layer that the pipeline has, and of its shape."""
    absent = [name for name in adapter.changes if name not in weights]
    other = [name for name, weight in weights.items() if not adapter.changes[name].fits(weight)]
    if not absent and not other and weights:
        return
    said = [f"{len(weights) - len(other)} of its {len(adapter.changes)} changes fit this pipeline"]
    if absent:
        said.append(f"{len(absent)} are of layers that it has not, such as {absent[0]}")
    if other:
        here = " x ".join(map(str, weights[other[0]].shape))
        found = adapter.changes[other[0]].shape
        said.append(f"{len(other)} are of other widths, such as {other[0]} ({found}, here {here})")
    raise UserError(f"{key}: {'; '.join(said)}; {WANTED}")
