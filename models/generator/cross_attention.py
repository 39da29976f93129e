"""Recording and injecting cross-attention (XA) maps of a diffusers UNet; self-attention stays fused.

Maps are rows of attention probabilities, "b heads q l": q latent pixels, l text tokens. What to record or inject is
an argument of the UNet's call (`cross_attention_kwargs`), so no network carries state and recomputation is safe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Bool, Float
from torch import Tensor

from classifier_lens.runner.types import UserError


@dataclass
class AttentionControl:
    """What one UNet call does with its cross-attention maps of the text branch (the last rows of the batch).

    injected_maps: layer -> (b, heads, q, l) maps that replace the network's own where `is_injected`; recorded_maps:
    filled by the call with layer -> (b, heads, q, l), for the last `num_recorded` rows of the batch.
    """

    injected_maps: Mapping[str, Tensor] = field(default_factory=dict)
    is_injected: Bool[Tensor, " b"] | None = None
    recorded_maps: dict[str, Tensor] | None = None
    num_recorded: int = 0


class SelfAttnProcessor(AttnProcessor2_0):
    """diffusers' fused attention, which ignores the `maps` that every layer gets."""

    def __call__(self, *args: Any, maps: AttentionControl | None = None, **kwargs: Any) -> Tensor:
        return super().__call__(*args, **kwargs)


class CrossAttnProcessor:
    """Attention to the text, fused unless its maps are recorded or replaced."""

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, maps: AttentionControl | None = None,
    ) -> Tensor:  # fmt: skip
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        injected = None if maps is None else maps.injected_maps.get(self.layer)
        if maps is None or (maps.recorded_maps is None and injected is None):
            out = F.scaled_dot_product_attention(q, k, v, scale=attn.scale)
        else:
            probabilities = (q @ k.transpose(-1, -2) * attn.scale).softmax(dim=-1)
            if maps.recorded_maps is not None:
                maps.recorded_maps[self.layer] = probabilities[-maps.num_recorded :].detach()
            if injected is not None and maps.is_injected is not None:
                rows = len(injected)
                replaced = torch.where(
                    maps.is_injected[:, None, None, None], injected.to(probabilities.dtype), probabilities[-rows:]
                )
                probabilities = torch.cat([probabilities[:-rows], replaced])
            out = probabilities @ v
        out = out.transpose(1, 2).flatten(-2)
        return attn.to_out[1](attn.to_out[0](out))


def set_attention_processors(unet: UNet2DConditionModel) -> list[str]:
    """Set the processor of every layer; returns the names of the cross-attention layers in the order of the forward
    pass."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    cross_attention = [name for name in names if name.endswith("attn2")]
    processors = {name: CrossAttnProcessor(name) if name in cross_attention else SelfAttnProcessor() for name in names}
    unet.set_attn_processor({f"{name}.processor": processor for name, processor in processors.items()})
    return cross_attention


def word_attention_map(
    recorded: Mapping[str, Tensor], positions: list[list[int]], side: int, window: slice
) -> Float[Tensor, "b 1 side side"]:
    """The attention map of a word: the cross-attention maps of one resolution, averaged over layers, steps, heads and
    tokens, and divided by their maximum.

    recorded: layer -> (b, t, heads, q, l); positions: of the word's tokens, per sample; side: height and width of the
    maps; window: the sampler steps of the average. Raises UserError if no layer has maps of that size.
    """
    layers = [m for m in recorded.values() if m.shape[3] == side * side]
    if not layers:
        sides = sorted({math.isqrt(m.shape[3]) for m in recorded.values()})
        raise UserError(f"generator.attention_maps.resolution={side}: allowed are {', '.join(map(str, sides))}")
    mean = torch.stack([m[:, window].float().mean(dim=(1, 2)) for m in layers]).mean(dim=0)
    maps = torch.stack([m[..., tokens].mean(dim=-1) for m, tokens in zip(mean, positions, strict=True)])
    maps = maps / maps.amax(dim=1, keepdim=True)
    return maps.view(-1, 1, side, side)


def min_max_normalize(maps: Float[Tensor, "b 1 y x"]) -> Float[Tensor, "b 1 y x"]:
    """Each map shifted and scaled to the range 0 … 1; a constant map becomes 0."""
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)
