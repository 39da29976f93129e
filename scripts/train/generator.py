"""Train a small latent diffusion model and save it as a Stable Diffusion pipeline folder.

    python scripts/train/generator.py data=planted part=vae minutes=30
    python scripts/train/generator.py data=planted part=unet minutes=120

Each call starts from the weights in `out`, and from the optimizer's state if `work` has it, and writes half-precision
weights to `out` when its time is over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from hydra.utils import instantiate
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from transformers import CLIPTextModel

from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.paths import ROOT
from classifier_lens.scripts.choices import run_main
from classifier_lens.scripts.train.captioned_images import CaptionedImages, load_captioned_images
from classifier_lens.scripts.train.loop import fit, load_settings
from classifier_lens.scripts.train.pipeline_folder import (
    encode_images,
    load_or_create_pipeline,
    save_pipeline,
    write_model_card,
)


def reconstruction_loss(cfg: Any, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss of (decoded, original), both in [-1, 1]: squared and absolute error and, if `vae.perceptual` names a
    classifier, the squared distance between its unit feature vectors, mean over positions, sum over layers (Zhang et
    al., 2018, without learned weights). This term preserves details that a classifier uses and that blur removes."""

    def pixels(y: Tensor, x: Tensor) -> Tensor:
        return F.mse_loss(y, x) + 0.05 * F.l1_loss(y, x)

    if cfg.vae.perceptual is None:
        return pixels
    classifier = instantiate(compose_config([f"classifier={cfg.vae.perceptual.classifier}"])["classifier"]).to(device)
    layers = create_feature_extractor(classifier.network, list(cfg.vae.perceptual.layers))

    def unit_features(x: Tensor) -> list[Tensor]:
        return [F.normalize(maps.float(), dim=1) for maps in layers(classifier.preprocess(x / 2 + 0.5)).values()]

    def loss(y: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            target_features = unit_features(x)
        distances = [((a - b) ** 2).sum(dim=1).mean() for a, b in zip(unit_features(y), target_features, strict=True)]
        return pixels(y, x) + cfg.vae.perceptual.weight * torch.stack(distances).sum()

    return loss


def train_vae(pipe: StableDiffusionPipeline, dataset: CaptionedImages, cfg: Any) -> None:
    """Train the autoencoder with a reconstruction loss and a small KL term; set `scaling_factor` to 1 / std."""
    images = dataset.images.to(pipe.device)
    distance = reconstruction_loss(cfg, pipe.device)

    def loss_of(vae: Any, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (cfg.vae.batch,), generator=generator, device=images.device)
        x = images[rows].float() / 127.5 - 1
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator)).sample.float()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return distance(y, x) + cfg.vae.kl_weight * kl

    pipe.vae = fit("vae", pipe.vae, loss_of, cfg, cfg.vae.lr)
    std = encode_images(pipe.vae, images[:2000]).std().item()
    pipe.vae.register_to_config(scaling_factor=1 / std)
    (ROOT / cfg.work / "latents.pt").unlink(missing_ok=True)


def train_decoder(pipe: StableDiffusionPipeline, dataset: CaptionedImages, cfg: Any) -> None:
    """Train the decoder alone, on the encoder's means: images become sharper and latents do not change."""
    images = dataset.images.to(pipe.device)
    distance = reconstruction_loss(cfg, pipe.device)
    pipe.vae.encoder.requires_grad_(False)
    pipe.vae.quant_conv.requires_grad_(False)

    def loss_of(vae: Any, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (cfg.vae.batch,), generator=generator, device=images.device)
        x = images[rows].float() / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.float()
        return distance(y, x)

    pipe.vae = fit("decoder", pipe.vae, loss_of, cfg, cfg.vae.lr).requires_grad_(True)


class Denoiser(nn.Module):
    """UNet and text encoder as one module, trained together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(z, t, self.text_encoder(tokens).last_hidden_state).sample


def train_unet(pipe: StableDiffusionPipeline, dataset: CaptionedImages, cfg: Any) -> None:
    """Train noise prediction with min-SNR weights, caption dropout and a higher weight inside the object mask."""
    device = pipe.device
    cache = ROOT / cfg.work / "latents.pt"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(encode_images(pipe.vae, dataset.images.to(device)).half().cpu(), cache)
    latents = torch.load(cache, weights_only=True).to(device).float() * pipe.vae.config.scaling_factor
    unique = sorted(set(dataset.captions))
    encoded = pipe.tokenizer([*unique, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    position = {text: i for i, text in enumerate(unique)}
    tokens = encoded[[position[text] for text in dataset.captions]].to(device)
    empty = encoded[-1].to(device)
    weight = torch.ones(len(latents), 1, *latents.shape[2:], device=device)
    if dataset.masks is not None:
        resized_masks = [
            F.adaptive_avg_pool2d(m[:, None].float() / 255, latents.shape[2:]) for m in dataset.masks.split(1000)
        ]
        weight += cfg.unet.object_weight * torch.cat(resized_masks).to(device)
    alphas = pipe.scheduler.alphas_cumprod.to(device)

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        n = cfg.unet.batch
        rows = torch.randint(len(latents), (n,), generator=generator, device=device)
        t = torch.randint(1000, (n,), generator=generator, device=device)
        noise = torch.randn(latents[rows].shape, generator=generator, device=device)
        dropped = torch.rand(n, 1, generator=generator, device=device) < cfg.unet.caption_dropout
        a = alphas[t].view(-1, 1, 1, 1)
        predicted = model(
            a.sqrt() * latents[rows] + (1 - a).sqrt() * noise, t, torch.where(dropped, empty, tokens[rows])
        )
        snr = a / (1 - a)
        return ((predicted.float() - noise) ** 2 * weight[rows] * snr.clamp(max=cfg.unet.snr_gamma) / snr).mean()

    if device.type == "cpu":
        # Fused attention's backward pass is twice as slow here for heads this narrow in bfloat16.
        pipe.unet.set_attn_processor(AttnProcessor())
    trained = fit("unet", Denoiser(pipe.unet, pipe.text_encoder), loss_of, cfg, cfg.unet.lr)
    pipe.unet, pipe.text_encoder = trained.unet, trained.text_encoder


def main(arguments: Sequence[str]) -> None:
    cfg, device = load_settings("generator", arguments)
    dataset = load_captioned_images(cfg)
    pipe = load_or_create_pipeline(cfg, dataset.captions).to(device)
    for part in ("vae", "unet") if cfg.part == "all" else (cfg.part,):
        {"vae": train_vae, "decoder": train_decoder, "unet": train_unet}[part](pipe, dataset, cfg)
        save_pipeline(pipe, ROOT / cfg.out)
        write_model_card(pipe, dataset, cfg, arguments)
        print(f"saved {cfg.out}")


if __name__ == "__main__":
    sys.exit(run_main(main, sys.argv[1:]))
