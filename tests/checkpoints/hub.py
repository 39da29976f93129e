"""Folders as the hub has them, with small random weights: Stable Diffusion 1.5, a consistency model and an adapter of
it, and Stable Diffusion 2.1, plain and distilled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file

from classifier_lens.scripts.weights.random_pipeline import ModelSize, write_pipeline

# The published files of these components, apart from widths and depths.
SCHEDULER = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip
# What LCM Dreamshaper's files say otherwise: the guidance is told to the UNet as an embedding of this width.
CONSISTENCY = {"time_cond_proj_dim": 256}
LCM_SCHEDULER = {
    **{key: value for key, value in SCHEDULER.items() if key not in ("_class_name", "skip_prk_steps", "steps_offset")},
    "_class_name": "LCMScheduler", "original_inference_steps": 50, "prediction_type": "epsilon", "steps_offset": 0,
    "set_alpha_to_one": True,
}  # fmt: skip
# What SD-Turbo's files say otherwise: Stable Diffusion 2.1's UNet and text encoder, and "!" fills prompts up.
TURBO = {"attention_head_dim": (2, 2, 4, 4), "use_linear_projection": True}
TURBO_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.24.0.dev0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "interpolation_type": "linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "timestep_spacing": "trailing", "trained_betas": None, "use_karras_sigmas": False,
}  # fmt: skip
# What Stable Diffusion 2.1's say otherwise: it predicts v.
VELOCITY_SCHEDULER = {
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "v_prediction",
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
}  # fmt: skip
# The layers that LCM-LoRA changes, by the ends of their names.
ADAPTED = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def snapshot(home: Path, repository: str, revision: str | None) -> Path:
    """The folder of a repository's files in the hub's cache, as a download of that revision leaves it."""
    cache = home / "hub" / f"models--{repository.replace('/', '--')}"
    commit = revision if revision and len(revision) == len(COMMIT) else COMMIT
    if commit != revision:
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / (revision or "main")).write_text(commit)
    files = cache / "snapshots" / commit
    files.mkdir(parents=True)
    return files


def write_stable_diffusion(folder: Path) -> Path:
    """Stable Diffusion 1.5's layout: 4 blocks in UNet and autoencoder, 77 tokens; without the safety checker and its
    extractor."""
    return _published(folder, PNDMScheduler, SCHEDULER, {})


def write_consistency_model(folder: Path) -> Path:
    """The same as a consistency model whose UNet is told the guidance."""
    index = {"_class_name": "LatentConsistencyModelPipeline"}
    return _published(folder, LCMScheduler, LCM_SCHEDULER, CONSISTENCY, index)


def write_turbo(folder: Path) -> Path:
    """SD-Turbo's layout."""
    index = {"_diffusers_version": "0.24.0.dev0"}
    return _published(folder, EulerDiscreteScheduler, TURBO_SCHEDULER, TURBO, index, {"hidden_act": "gelu"}, "!")


def write_velocity_model(folder: Path) -> Path:
    """Stable Diffusion 2.1's layout."""
    index = {"_diffusers_version": "0.8.0"}
    return _published(folder, DDIMScheduler, VELOCITY_SCHEDULER, TURBO, index, {"hidden_act": "gelu"}, "!")


def _published(
    folder: Path, kind: Any, scheduler: dict[str, Any], unet: dict[str, Any], index: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None, pad: str | None = None,
) -> Path:  # fmt: skip
    """A pipeline's folder with the published files of its scheduler and its index; index: what that says otherwise."""
    size = ModelSize(
        (32, 32, 64, 64),
        (32,) * 4,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        unet_kwargs=unet,
        text_encoder_kwargs=text or {},
    )
    write_pipeline(folder, size, kind.from_config(scheduler), torch.float32, pad)
    own = INDEX | {"scheduler": ["diffusers", kind.__name__]} | (index or {})
    (folder / "model_index.json").write_text(json.dumps(own, indent=2))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    return folder


def write_half(folder: Path, pipeline: Path) -> Path:
    """A pipeline's files in half precision, with `fp16` in their names, as the hub has them beside the others."""
    pipe = StableDiffusionPipeline.from_pretrained(
        pipeline, dtype=torch.float16, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder, variant="fp16")
    return folder


def write_lcm_lora(folder: Path, pipeline: Path, rank: int = 4) -> Path:
    """LCM-LoRA's layout for a pipeline's UNet: one file in half precision, with the names of Kohya's trainer."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet")
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in unet.named_modules():
        if name.endswith(ADAPTED):
            key, kernel = f"lora_unet_{name.replace('.', '_')}", layer.weight.shape[2:]
            down, up = (rank, layer.weight.shape[1], *kernel), (layer.weight.shape[0], rank, *[1] * len(kernel))
            tensors |= {
                f"{key}.alpha": torch.tensor(float(rank)), f"{key}.lora_down.weight": 0.1 * torch.randn(down),
                f"{key}.lora_up.weight": 0.1 * torch.randn(up),
            }  # fmt: skip
    folder.mkdir()
    halved = {name: value.half().contiguous() for name, value in tensors.items()}
    save_file(halved, folder / "pytorch_lora_weights.safetensors")
    return folder
