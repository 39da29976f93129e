"""The frozen networks of a latent diffusion model, and their loading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from classifier_lens.models.devices import parse_device, parse_dtype
from classifier_lens.models.generator import cross_attention
from classifier_lens.models.generator.noise_schedule import guidance_embedding
from classifier_lens.models.generator.pipeline.adapters import fuse_lora
from classifier_lens.models.generator.pipeline.folder import (
    WANTED,
    check_pipeline,
    check_unet,
    choose_variants,
    pipeline_folder,
)
from classifier_lens.models.generator.pipeline.noise_levels import read_scheduler, to_ddim_scheduler
from classifier_lens.models.hub import as_user_error, local_folder
from classifier_lens.runner.types import UserError

NETWORK_CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
# Keys of configurations that depend on the library that wrote them.
IGNORED_CONFIG_KEYS = ("transformers_version", "dtype", "torch_dtype")


class Networks:
    """Autoencoder, UNet, text encoder and tokenizer of a pipeline; scheduler: its noise levels and timesteps;
    v_prediction: whether the UNet predicts v, not ε; digest: of the weights and configurations; straight_through_clamp:
    whether the gradient of a decoded image passes where the image is clipped to [0, 1]."""

    def __init__(self, pipe: StableDiffusionPipeline, digest: str) -> None:
        self.scheduler = to_ddim_scheduler("generator.path", pipe.scheduler)
        self.v_prediction: bool = self.scheduler.config.prediction_type == "v_prediction"
        self.vae: AutoencoderKL = pipe.vae.requires_grad_(False).eval()
        self.unet: UNet2DConditionModel = pipe.unet.requires_grad_(False).eval()
        self.text_encoder: CLIPTextModel = pipe.text_encoder.requires_grad_(False).eval()
        self.tokenizer = pipe.tokenizer
        # Files of tokenizers may leave their length out; the text encoder has positions for so many.
        positions = self.text_encoder.config.max_position_embeddings
        self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, positions)
        self.device, self.digest = pipe.device, digest
        self.straight_through_clamp = True
        cross_attention.set_attention_processors(self.unet)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of the image per latent pixel, along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def dtype(self) -> torch.dtype:
        """The number format that the UNet computes in."""
        number: torch.dtype = self.unet.dtype
        return number

    @property
    def has_guidance_embedding(self) -> bool:
        """Whether the guidance scale is an input of the UNet (`timestep_cond`)."""
        return self.unet.config.time_cond_proj_dim is not None

    def compile(self) -> None:
        """Compile UNet and decoder at their first call with each batch size."""
        self.unet.compile()
        self.vae.decoder.compile()

    def to_channels_last(self) -> None:
        """Store a pixel's channels of UNet and autoencoder next to each other, for the tensor cores of GPUs."""
        for network in (self.unet, self.vae):
            network.to(memory_format=torch.channels_last)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c y x"]:
        """Scaled latents E(x) of images in [0, 1] (the posterior's mean)."""
        mean = self.vae.encode(images.to(self.vae.dtype) * 2 - 1).latent_dist.mode()
        return mean.to(images.dtype) * self.vae.config.scaling_factor

    def decode(self, latents: Float[Tensor, "b c y x"]) -> Float[Tensor, "b 3 h w"]:
        """Images of scaled latents, clipped to [0, 1]."""
        decoded = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        image = decoded.to(latents.dtype) / 2 + 0.5
        return image + (image.clamp(0, 1) - image).detach() if self.straight_through_clamp else image.clamp(0, 1)

    def tokenize(self, prompts: Sequence[str]) -> Int[Tensor, "b l"]:
        """Token ids of prompts, padded to the model's length."""
        length = self.tokenizer.model_max_length
        encoded = self.tokenizer(list(prompts), padding="max_length", max_length=length, return_tensors="pt")
        return encoded.input_ids.to(self.device)

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "b l d"]:
        """Text embeddings of prompts."""
        with torch.no_grad():
            return self.text_encoder(self.tokenize(prompts))[0].float()

    def pad_tokens(self, tokens: Sequence[Sequence[int]]) -> Int[Tensor, "b l"]:
        """Token ids with start and end token, padded as `tokenize` pads prompts."""
        tokenizer = self.tokenizer
        rows = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in tokens]
        rows = [row + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(row)) for row in rows]
        return torch.tensor(rows, device=self.device)

    def token_embeddings(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """The text encoder's embeddings of tokens, before those of positions are added."""
        with torch.no_grad():
            vectors: Tensor = self.text_encoder.get_input_embeddings()(tokens)
            return vectors.float()

    def encode_token_embeddings(
        self, tokens: Int[Tensor, "b l"], vectors: Float[Tensor, "b l d"]
    ) -> Float[Tensor, "b l d"]:
        """Text embeddings from token embeddings, with gradients; tokens: ids at their positions."""
        lookup = self.text_encoder.get_input_embeddings()
        hook = lookup.register_forward_hook(lambda module, arguments, output: vectors.to(output.dtype))
        try:
            embedded: Tensor = self.text_encoder(tokens)[0]
        finally:
            hook.remove()
        return embedded.float()

    def predict(
        self, z: Float[Tensor, "b c y x"], t: Tensor, text: Float[Tensor, "b l d"],
        maps: cross_attention.AttentionControl | None = None, guidance: float | None = None,
    ) -> Float[Tensor, "b c y x"]:  # fmt: skip
        """The UNet's prediction, ε or v; guidance: scale that is its input, None for a UNet without it."""
        dtype = self.unet.dtype
        kwargs = None if maps is None else {"maps": maps}
        condition = None
        if guidance is not None:
            scales = torch.full((len(z),), guidance, device=z.device)
            condition = guidance_embedding(scales, self.unet.config.time_cond_proj_dim).to(dtype)
        predicted = self.unet(
            z.to(dtype), t, text.to(dtype), timestep_cond=condition, cross_attention_kwargs=kwargs
        ).sample
        return predicted.to(z.dtype)

    def sample_noise(self, seeds: Sequence[int], side: int, count: int) -> Float[Tensor, "b n c y x"]:
        """`count` latents of noise per seed; equal on all devices, the first ones for every count."""
        shape = (self.unet.config.in_channels, side, side)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        draws = [torch.stack([torch.randn(shape, generator=g) for _ in range(count)]) for g in generators]
        return torch.stack(draws).to(self.device)

    def attention_map_sides(self, side: int) -> list[int]:
        """The sides of the UNet's cross-attention maps for latents of this side, in latent pixels."""
        kinds = self.unet.config.down_block_types
        levels = [-(-side // 2**i) for i in range(len(kinds))]
        crossed = [level for level, kind in zip(levels, kinds, strict=True) if "CrossAttn" in kind]
        return sorted({*crossed, *([levels[-1]] if "CrossAttn" in (self.unet.config.mid_block_type or "") else [])})


def load_networks(
    path: str, unet: str | None, lora: str | None, revision: str | None, variant: str | None, dtype: str, device: str,
    download_hint: str,
) -> Networks:  # fmt: skip
    """The networks of a pipeline's folder, or of a hub id whose files are in the hub's cache.

    unet: a folder or hub id whose UNet replaces the pipeline's; lora: of an adapter that is fused with it; variant: of
    the files that are read, such as fp16, None for files without a variant; download_hint: how to get them. Raises
    UserError if weights are missing, if the folder holds another kind of pipeline, and if an adapter does not fit;
    before any weight is read, where small files tell."""
    number_format, target = parse_dtype("generator.dtype", dtype), parse_device("generator.device", device)
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    key = f"generator.path={path}"
    folder = pipeline_folder(key, path, revision, download_hint)
    check_pipeline(key, folder)
    scheduler = read_scheduler(key, folder)
    parts = {"unet": folder / "unet", "vae": folder / "vae", "text_encoder": folder / "text_encoder"}
    keys = dict.fromkeys(parts, key)
    if unet is not None:
        keys["unet"] = f"generator.unet={unet}"
        parts["unet"] = local_folder(keys["unet"], unet, None, download_hint) / "unet"
        check_unet(keys["unet"], "UNet", parts["unet"], folder)
    variants = choose_variants(keys, parts, variant, download_hint)
    networks = {
        name: _read(keys[name], NETWORK_CLASSES[name], parts[name], variants[name], number_format) for name in parts
    }
    with as_user_error(key, WANTED):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    pipe = StableDiffusionPipeline(
        **networks, tokenizer=tokenizer, scheduler=None, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.register_modules(scheduler=scheduler)  # the pipeline's constructor would set steps_offset to 1
    _check_vocabulary(key, pipe)
    if lora is not None:
        fuse_lora(pipe, lora, download_hint)
    return Networks(pipe.to(target), pipeline_digest(pipe))


def _read(key: str, model_class: Any, folder: Path, variant: str | None, dtype: torch.dtype) -> Any:
    """A network with all its weights. Raises UserError if its files are broken or weights are missing."""
    with as_user_error(key, WANTED):
        network, info = model_class.from_pretrained(folder, variant=variant, dtype=dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{key}: {len(missing)} weights of its {folder.name} are missing, such as {missing[0]}; {WANTED}"
        )
    return network


def _check_vocabulary(key: str, pipe: StableDiffusionPipeline) -> None:
    """Raise UserError for words of the tokenizer without an embedding in the text encoder."""
    rows = pipe.text_encoder.get_input_embeddings().num_embeddings
    words = sorted(word for word, number in pipe.tokenizer.get_vocab().items() if number >= rows)
    if words:
        raise UserError(
            f"{key}: its tokenizer knows {len(words)} words that its text encoder has no embedding of, such as "
            f"{words[0]}: a learned word needs its row there (resize_token_embeddings, then save both)"
        )


def pipeline_digest(pipe: StableDiffusionPipeline) -> str:
    """SHA-256 over the weights of the three networks, in the order of their names, their and the scheduler's
    configurations, and the tokenizer."""
    sha = hashlib.sha256()
    for part in (pipe.vae, pipe.text_encoder, pipe.unet, pipe.scheduler):
        config = part.config if isinstance(part.config, dict) else part.config.to_dict()
        settings = {k: v for k, v in config.items() if not k.startswith("_") and k not in IGNORED_CONFIG_KEYS}
        sha.update(json.dumps(settings, sort_keys=True, default=str).encode())
    vocabulary = json.loads(pipe.tokenizer.backend_tokenizer.to_str())
    vocabulary |= {"padding": None, "truncation": None}  # of the last call
    sha.update(json.dumps([vocabulary, pipe.tokenizer.model_max_length], sort_keys=True).encode())
    for network in (pipe.vae, pipe.text_encoder, pipe.unet):
        for name, value in sorted(network.state_dict().items()):
            sha.update(name.encode())
            sha.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
