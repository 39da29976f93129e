"""Train a small latent diffusion model and save it as a Stable Diffusion pipeline folder.

    python scripts/train_generator.py data=planted part=vae minutes=30
    python scripts/train_generator.py data=planted part=unet minutes=120

Each call starts from the weights in `out` (and, where `work` still has it, from the optimiser's state) and
writes half-precision weights back to `out` when its time is over.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models.feature_extraction import create_feature_extractor
from transformers import CLIPTextConfig, CLIPTextModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data import cifar10, planted  # noqa: E402
from runner.compose import configure  # noqa: E402
from scripts.tokenizer import train_tokenizer  # noqa: E402


@dataclass
class Corpus:
    """Training pictures: images (n, 3, h, w) uint8, a caption each, and object masks (n, h, w) uint8 or None."""

    images: Tensor
    captions: list[str]
    masks: Tensor | None


def load_corpus(cfg: Any) -> Corpus:
    """The training pictures that `cfg.data` names."""
    if cfg.data == "planted":
        images, masks, captions = [], [], []
        for start in range(0, cfg.images, 1000):
            scenes, text = planted.draw_captioned(
                min(1000, cfg.images - start), planted.SPLIT_SEEDS["train"] + cfg.seed, start
            )
            rendered = planted.render(scenes)
            images.append((rendered.image * 255).round().byte())
            masks.append((rendered.object_mask * 255).round().byte())
            captions += text
        return Corpus(torch.cat(images), captions, torch.cat(masks))
    photographs, labels, _ = cifar10.load(cfg.data_path, "train")
    order = torch.randperm(len(photographs), generator=torch.Generator().manual_seed(cfg.seed))[: cfg.images]
    photographs = torch.cat([photographs[order], photographs[order].flip(-1)])
    return Corpus(photographs, [cifar10_caption(int(c)) for c in labels[order]] * 2, None)


def cifar10_caption(label: int) -> str:
    name = cifar10.CLASSES[label]
    return f"a photograph of {'an' if name[0] in 'aeiou' else 'a'} {name}"


def build(cfg: Any, captions: list[str]) -> StableDiffusionPipeline:
    """The pipeline in `cfg.out`, or a fresh one of the configured shape."""
    out = ROOT / cfg.out
    if (out / "model_index.json").exists():
        return StableDiffusionPipeline.from_pretrained(out, dtype=torch.float32, safety_checker=None)
    torch.manual_seed(cfg.seed)
    tokenizer = train_tokenizer(captions, cfg.merges, cfg.token_length, out / "tokenizer")
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
        latent_channels=cfg.vae.latent_channels, sample_size=cfg.vae.size, scaling_factor=1.0,
    )  # fmt: skip
    levels = len(cfg.unet.channels)
    unet = UNet2DConditionModel(
        sample_size=cfg.vae.size // 2 ** (depth - 1), in_channels=cfg.vae.latent_channels,
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


def warm_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential average whose memory grows with the steps seen, so that early weights do not linger."""

    @torch.no_grad()
    def update(averages: Any, values: Any, seen: Any) -> None:
        n = float(seen)
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def fit(name: str, model: nn.Module, loss_of: Callable[[Any, torch.Generator], Tensor], cfg: Any, lr: float) -> Any:
    """Adam with warm-up until `cfg.minutes` are over; returns the exponential average of the weights.

    The state in `cfg.work` is written every `cfg.save_every` seconds, so a killed run goes on from there.
    """
    device = next(model.parameters()).device
    state_path = ROOT / cfg.work / f"{name}.pt"
    state_path.parent.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.99), weight_decay=1e-4
    )
    average = AveragedModel(model, multi_avg_fn=warm_average(cfg.ema))
    step = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    def save() -> None:
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step}, state_path.with_suffix(".tmp"))
        state_path.with_suffix(".tmp").replace(state_path)

    started = saved = time.monotonic()
    first, total = step, 0.0
    model.train()
    while (now := time.monotonic()) - started < 60 * cfg.minutes:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 500)
        generator = torch.Generator(device).manual_seed(cfg.seed * 1_000_003 + step)
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(model, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        step += 1
        total += loss.item()
        if step % 100 == 0:
            rate = (step - first) / (now - started + 1e-9)
            print(f"{name} step {step} loss {total / 100:.5f} {rate:.2f} steps/s", flush=True)
            total = 0.0
        if now - saved > cfg.save_every:
            save()
            saved = now
    save()
    return average.module.eval()


def reconstruction_loss(cfg: Any, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """(decoded, original), both in [-1, 1], to a loss: squared and absolute error and, where `vae.perceptual` names a
    classifier, the squared distance between its unit feature vectors, mean over positions, sum over layers (Zhang et
    al., 2018, without learned weights). What such a network reads then survives, which blur destroys."""

    def pixels(y: Tensor, x: Tensor) -> Tensor:
        return F.mse_loss(y, x) + 0.05 * F.l1_loss(y, x)

    if cfg.vae.perceptual is None:
        return pixels
    reader = instantiate(configure([f"classifier={cfg.vae.perceptual.classifier}"])["classifier"]).to(device)
    layers = create_feature_extractor(reader.network, list(cfg.vae.perceptual.layers))

    def unit_features(x: Tensor) -> list[Tensor]:
        return [F.normalize(maps.float(), dim=1) for maps in layers(reader.prepare(x / 2 + 0.5)).values()]

    def loss(y: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = unit_features(x)
        apart = [((a - b) ** 2).sum(dim=1).mean() for a, b in zip(unit_features(y), wanted, strict=True)]
        return pixels(y, x) + cfg.vae.perceptual.weight * torch.stack(apart).sum()

    return loss


def train_vae(pipe: StableDiffusionPipeline, corpus: Corpus, cfg: Any) -> None:
    """Autoencoder with a reconstruction loss and a small KL term; sets `scaling_factor` to 1 / std."""
    images = corpus.images.to(pipe.device)
    distance = reconstruction_loss(cfg, pipe.device)

    def loss_of(vae: Any, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (cfg.vae.batch,), generator=generator, device=images.device)
        x = images[rows].float() / 127.5 - 1
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(generator)).sample.float()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return distance(y, x) + cfg.vae.kl * kl

    pipe.vae = fit("vae", pipe.vae, loss_of, cfg, cfg.vae.lr)
    std = encode(pipe.vae, images[:2000]).std().item()
    pipe.vae.register_to_config(scaling_factor=1 / std)
    (ROOT / cfg.work / "latents.pt").unlink(missing_ok=True)


def train_decoder(pipe: StableDiffusionPipeline, corpus: Corpus, cfg: Any) -> None:
    """The decoder alone, on the encoder's means: pictures get sharper and no latent changes."""
    images = corpus.images.to(pipe.device)
    distance = reconstruction_loss(cfg, pipe.device)
    pipe.vae.encoder.requires_grad_(False)
    pipe.vae.quant_conv.requires_grad_(False)

    def loss_of(vae: Any, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (cfg.vae.batch,), generator=generator, device=images.device)
        x = images[rows].float() / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.float()
        return distance(y, x)

    pipe.vae = fit("decoder", pipe.vae, loss_of, cfg, cfg.vae.lr).requires_grad_(True)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Posterior means (n, c, h, w) of uint8 images, not yet scaled."""
    with torch.autocast(images.device.type, torch.bfloat16):
        return torch.cat([vae.encode(x.float() / 127.5 - 1).latent_dist.mean.float() for x in images.split(100)])


class Denoiser(nn.Module):
    """UNet and text encoder as one module, trained together."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(z, t, self.text_encoder(tokens).last_hidden_state).sample


def train_unet(pipe: StableDiffusionPipeline, corpus: Corpus, cfg: Any) -> None:
    """Noise prediction with min-SNR weights, dropped captions and a higher weight inside the object mask."""
    device = pipe.device
    cache = ROOT / cfg.work / "latents.pt"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(encode(pipe.vae, corpus.images.to(device)).half().cpu(), cache)
    latents = torch.load(cache, weights_only=True).to(device).float() * pipe.vae.config.scaling_factor
    unique = sorted(set(corpus.captions))
    encoded = pipe.tokenizer([*unique, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    position = {text: i for i, text in enumerate(unique)}
    tokens = encoded[[position[text] for text in corpus.captions]].to(device)
    empty = encoded[-1].to(device)
    weight = torch.ones(len(latents), 1, *latents.shape[2:], device=device)
    if corpus.masks is not None:
        small = [F.adaptive_avg_pool2d(m[:, None].float() / 255, latents.shape[2:]) for m in corpus.masks.split(1000)]
        weight += cfg.unet.object_weight * torch.cat(small).to(device)
    alphas = pipe.scheduler.alphas_cumprod.to(device)

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        n = cfg.unet.batch
        rows = torch.randint(len(latents), (n,), generator=generator, device=device)
        t = torch.randint(1000, (n,), generator=generator, device=device)
        noise = torch.randn(latents[rows].shape, generator=generator, device=device)
        dropped = torch.rand(n, 1, generator=generator, device=device) < cfg.unet.drop
        a = alphas[t].view(-1, 1, 1, 1)
        predicted = model(
            a.sqrt() * latents[rows] + (1 - a).sqrt() * noise, t, torch.where(dropped, empty, tokens[rows])
        )
        snr = a / (1 - a)
        return ((predicted.float() - noise) ** 2 * weight[rows] * snr.clamp(max=cfg.unet.min_snr) / snr).mean()

    if device.type == "cpu":
        # Fused attention's backward pass is twice as slow here for heads this narrow in bfloat16.
        pipe.unet.set_attn_processor(AttnProcessor())
    trained = fit("unet", Denoiser(pipe.unet, pipe.text_encoder), loss_of, cfg, cfg.unet.lr)
    pipe.unet, pipe.text_encoder = trained.unet, trained.text_encoder


def save_pipeline(pipe: StableDiffusionPipeline, out: Path) -> None:
    """Write half-precision weights; the pipeline itself stays in full precision. No path of this machine is kept.

    The text encoder's configuration asks for full precision, as the other networks are loaded by default: a pipeline
    loaded without a `dtype` would else mix both.
    """
    networks = (pipe.vae, pipe.unet, pipe.text_encoder)
    for network in networks:
        network.half()
    pipe.save_pretrained(out)
    for network in networks:
        network.float()
    for path in out.rglob("*.json"):
        content = json.loads(path.read_text())
        clean = {key: value for key, value in content.items() if key != "_name_or_path"}
        if "dtype" in clean:
            clean["dtype"] = "float32"
        if clean != content:
            path.write_text(json.dumps(clean, indent=2) + "\n")


def write_card(pipe: StableDiffusionPipeline, corpus: Corpus, cfg: Any, arguments: list[str]) -> None:
    """README.md beside the weights: what it is, how it was trained, how well the autoencoder does on its pictures."""
    work, device = ROOT / cfg.work, pipe.device
    states = {name: work / f"{name}.pt" for name in ("vae", "decoder", "unet") if (work / f"{name}.pt").exists()}
    steps = {name: torch.load(path, weights_only=True, map_location="cpu")["step"] for name, path in states.items()}
    x = corpus.images[-256:].to(device)
    with torch.no_grad():
        y = pipe.vae.decode(encode(pipe.vae, x)).sample / 2 + 0.5
    psnr = -10 * ((y.clamp(0, 1) - x / 255) ** 2).flatten(1).mean(dim=1).log10().mean().item()
    sizes = {name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in ("vae", "unet", "text_encoder")}
    batches = {"vae": cfg.vae.batch, "decoder": cfg.vae.batch, "unet": cfg.unet.batch}
    lines = [
        f"# {cfg.data}", "",
        f"A latent diffusion model in Stable Diffusion's file layout, {cfg.vae.size} px, half precision.", "",
        *[f"- {name}: {size:,} parameters" for name, size in sizes.items()],
        f"- Data: `{cfg.data}`, {len(corpus.captions):,} training pictures, seed {cfg.seed}",
        *[f"- {name} trained for {n:,} steps of {batches[name]}" for name, n in steps.items()],
        f"- Command of the last run: `python scripts/train_generator.py {' '.join(arguments)}`",
        f"- Autoencoder on 256 of its training pictures: {psnr:.1f} dB PSNR",
        "", "Measured quality: `docs/results/`. Licence: Apache-2.0, as this repository.", "",
    ]  # fmt: skip
    (ROOT / cfg.out / "README.md").write_text("\n".join(lines))


def main(arguments: list[str]) -> None:
    cli = OmegaConf.from_cli(arguments)
    defaults = ROOT / "conf" / "train" / f"generator_{cli.get('data', 'planted')}.yaml"
    if not defaults.exists():
        raise SystemExit(f"data={cli.data}: allowed are planted, cifar10")
    base = OmegaConf.load(defaults)
    OmegaConf.set_struct(base, True)
    cfg = OmegaConf.merge(base, cli)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    corpus = load_corpus(cfg)
    pipe = build(cfg, corpus.captions).to(device)
    for part in ("vae", "unet") if cfg.part == "all" else (cfg.part,):
        {"vae": train_vae, "decoder": train_decoder, "unet": train_unet}[part](pipe, corpus, cfg)
        save_pipeline(pipe, ROOT / cfg.out)
        write_card(pipe, corpus, cfg, arguments)
        print(f"saved {cfg.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
