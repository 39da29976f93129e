"""A pipeline with Stable Diffusion 1.5's architecture and random weights, of full or smaller size."""

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

MODEL_MAX_LENGTH = 77  # tokens of a prompt


@dataclass(frozen=True)
class ModelSize:
    """Widths and depths. unet_channels, vae_channels: channels of the four levels; hidden_size, intermediate_size (of
    the feed-forward layers), num_hidden_layers, num_attention_heads: of the text encoder; unet_kwargs,
    text_encoder_kwargs: further settings."""

    unet_channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    vae_channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    unet_kwargs: Mapping[str, Any] = field(default_factory=dict)
    text_encoder_kwargs: Mapping[str, Any] = field(default_factory=dict)


def write_pipeline(
    folder: Path, size: ModelSize, scheduler: Any, dtype: torch.dtype, pad_token: str | None = None
) -> None:
    """Write a pipeline folder with random weights of a fixed seed and without a safety checker.

    scheduler: of diffusers; dtype: of the weight files; pad_token: the padding token, None for the end token. The
    tokenizer has the words of the planted world, and splits other words into letters."""
    torch.manual_seed(0)
    captions = planted.sample_captioned_scenes(300, seed=1)[1]
    tokenizer = train_tokenizer(captions, 100, MODEL_MAX_LENGTH, folder.with_name("learned tokenizer"))
    tokenizer.pad_token = pad_token or tokenizer.pad_token
    vae = AutoencoderKL(
        block_out_channels=size.vae_channels, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, in_channels=3, out_channels=3, latent_channels=4,
        layers_per_block=2, norm_num_groups=32, act_fn="silu", sample_size=512,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=size.unet_channels, cross_attention_dim=size.hidden_size, layers_per_block=2,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3), norm_num_groups=32, norm_eps=1e-5,
        in_channels=4, out_channels=4, sample_size=64, center_input_sample=False, flip_sin_to_cos=True,
        freq_shift=0, mid_block_scale_factor=1, downsample_padding=1, act_fn="silu",
        **{"attention_head_dim": 8, **size.unet_kwargs},
    )  # fmt: skip
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_hidden_layers,
            num_attention_heads=size.num_attention_heads,
            max_position_embeddings=MODEL_MAX_LENGTH,
            projection_dim=size.hidden_size,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **{"hidden_act": "quick_gelu", **size.text_encoder_kwargs},
        )
    )
    StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).to(dtype).save_pretrained(folder)  # fmt: skip
