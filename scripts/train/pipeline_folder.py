"""A small latent diffusion model as a pipeline folder: networks, files and model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, ModelMixin, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from classifier_lens.runner.paths import ROOT
from classifier_lens.scripts.evaluate.estimates import psnr
from classifier_lens.scripts.train.captioned_images import CaptionedImages
from classifier_lens.scripts.train.tokenizer import train_tokenizer


def load_or_create_pipeline(cfg: Any, captions: Sequence[str]) -> StableDiffusionPipeline:
    """The pipeline in `cfg.out`, or a new one with random weights of the configured shape."""
    out = ROOT / cfg.out
    if (out / "model_index.json").exists():
        return StableDiffusionPipeline.from_pretrained(out, dtype=torch.float32, safety_checker=None)
    torch.manual_seed(cfg.seed)
    tokenizer = train_tokenizer(captions, cfg.num_merges, cfg.token_length, out / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=cfg.token_dim, intermediate_size=4 * cfg.token_dim,
            projection_dim=cfg.token_dim, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=cfg.token_length, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    depth = len(cfg.vae.channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth, up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=tuple(cfg.vae.channels), layers_per_block=1, norm_num_groups=8,
        latent_channels=cfg.vae.latent_channels, sample_size=cfg.vae.resolution, scaling_factor=1.0,
    )  # fmt: skip
    levels = len(cfg.unet.channels)
    unet = UNet2DConditionModel(
        sample_size=cfg.vae.resolution // 2 ** (depth - 1), in_channels=cfg.vae.latent_channels,
        out_channels=cfg.vae.latent_channels, down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels, block_out_channels=tuple(cfg.unet.channels),
        layers_per_block=1, cross_attention_dim=cfg.token_dim, attention_head_dim=cfg.unet.heads, norm_num_groups=8,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Posterior means (n, c, h, w) of uint8 images, without the scaling factor."""
    with torch.autocast(images.device.type, torch.bfloat16):
        return torch.cat([vae.encode(x.float() / 127.5 - 1).latent_dist.mean.float() for x in images.split(100)])


def save_pipeline(pipe: StableDiffusionPipeline, out: Path) -> None:
    """Write half-precision weights without local paths; the pipeline itself stays in full precision.

    The text encoder's configuration states full precision, the default of the other networks: a pipeline that is loaded
    without a `dtype` would otherwise mix both.
    """
    networks = (pipe.vae, pipe.unet, pipe.text_encoder)
    for network in networks:
        network.half()
    pipe.save_pretrained(out)
    for network in networks:
        network.float()
    remove_local_paths(out)


def save_network(network: ModelMixin, out: Path) -> None:
    """Write the half-precision weights of one network, like `save_pipeline`."""
    network.half().save_pretrained(out)
    network.float()
    remove_local_paths(out)


def remove_local_paths(out: Path) -> None:
    """Remove local paths and half precision from all configurations below a folder."""
    for path in out.rglob("*.json"):
        content = json.loads(path.read_text())
        cleaned = {key: value for key, value in content.items() if key != "_name_or_path"}
        if "dtype" in cleaned:
            cleaned["dtype"] = "float32"
        if cleaned != content:
            path.write_text(json.dumps(cleaned, indent=2) + "\n")


def write_model_card(
    pipe: StableDiffusionPipeline, dataset: CaptionedImages, cfg: Any, arguments: Sequence[str]
) -> None:
    """Write README.md beside the weights: size, training, and the PSNR of the autoencoder on training images."""
    work, device = ROOT / cfg.work, pipe.device
    states = {name: work / f"{name}.pt" for name in ("vae", "decoder", "unet") if (work / f"{name}.pt").exists()}
    steps = {name: torch.load(path, weights_only=True, map_location="cpu")["step"] for name, path in states.items()}
    x = dataset.images[-256:].to(device)
    with torch.no_grad():
        y = pipe.vae.decode(encode_images(pipe.vae, x)).sample / 2 + 0.5
    mean_psnr = psnr(y.clamp(0, 1), x / 255).mean().item()
    sizes = {name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in ("vae", "unet", "text_encoder")}
    batches = {"vae": cfg.vae.batch, "decoder": cfg.vae.batch, "unet": cfg.unet.batch}
    lines = [
        f"# {cfg.data}", "",
        f"A latent diffusion model in Stable Diffusion's file layout, {cfg.vae.resolution} px, half precision.", "",
        *[f"- {name}: {size:,} parameters" for name, size in sizes.items()],
        f"- Data: `{cfg.data}`, {len(dataset.captions):,} training images, seed {cfg.seed}",
        *[f"- {name} trained for {n:,} steps of {batches[name]}" for name, n in steps.items()],
        f"- Command of the last run: `python scripts/train/generator.py {' '.join(arguments)}`",
        f"- Autoencoder on 256 of its training images: {mean_psnr:.1f} dB PSNR",
        "", "Measured quality: `docs/results/`. License: Apache-2.0, as this repository.", "",
    ]  # fmt: skip
    (ROOT / cfg.out / "README.md").write_text("\n".join(lines))
