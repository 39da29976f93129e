"""A pipeline of Stable Diffusion 1.5's architecture with random weights, at its own size or a smaller one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from classifier_lens.data import planted
from classifier_lens.scripts.train.tokenizer import train_tokenizer

LENGTH = 77  # tokens of a prompt


@dataclass(frozen=True)
class Size:
    """Widths and depths. unet, vae: channels of their four levels; width, layers, heads: of the text encoder, whose
    feed-forward layers are `inner` wide; told: further settings of the UNet, text: of the text encoder."""

    unet: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    vae: tuple[int, int, int, int] = (128, 256, 512, 512)
    width: int = 768
    inner: int = 3072
    layers: int = 12
    heads: int = 12
    told: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)


def write_pipeline(folder: Path, size: Size, scheduler: Any, dtype: torch.dtype, pad: str | None = None) -> None:
    """The folder of a pipeline whose weights are drawn with a fixed seed, and which has no safety checker.

    scheduler: an object of diffusers; dtype: of the weights' files; pad: the token that fills prompts up, None for the
    mark at their end. The tokenizer knows the planted world's words and any other letter by letter.
    """
    torch.manual_seed(0)
    captions = planted.draw_captioned(300, seed=1)[1]
    tokenizer = train_tokenizer(captions, 100, LENGTH, folder.with_name("learned tokenizer"))
    tokenizer.pad_token = pad or tokenizer.pad_token
    vae = AutoencoderKL(
        block_out_channels=size.vae, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, in_channels=3, out_channels=3, latent_channels=4,
        layers_per_block=2, norm_num_groups=32, act_fn="silu", sample_size=512,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=size.unet, cross_attention_dim=size.width, layers_per_block=2,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3), norm_num_groups=32, norm_eps=1e-5,
        in_channels=4, out_channels=4, sample_size=64, center_input_sample=False, flip_sin_to_cos=True,
        freq_shift=0, mid_block_scale_factor=1, downsample_padding=1, act_fn="silu",
        **{"attention_head_dim": 8, **size.told},
    )  # fmt: skip
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=size.width, intermediate_size=size.inner,
            num_hidden_layers=size.layers, num_attention_heads=size.heads, max_position_embeddings=LENGTH,
            projection_dim=size.width, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, **{"hidden_act": "quick_gelu", **size.text},
        )
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).to(dtype).save_pretrained(folder)  # fmt: skip
