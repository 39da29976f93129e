"""Stable Diffusion as a differentiable function of its start latent and embeddings (DiG-IN, Section 3, Algorithm 1)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import logging as transformers_logging

from models import attention, invert, words
from models.region import described, free
from models.segment import Softening
from models.steps import Schedule, ddim_schedule, ddim_step, guide
from models.tensor_cache import TensorCache
from runner.types import Anchor, Controls, Problem, Scene, Schedules, Segmenter, Start, UserError

ROOT = Path(__file__).resolve().parent.parent
RECOMPUTE = ("none", "step", "block")
REQUIRED = ("model_index.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class MapWindow:
    """Which XA maps make the mask: their side in latent pixels, and the part of the chain as shares in [0, 1].

    stretch: whether a map's minimum becomes 0. Where captions say little but the class, its words are attended to from
    everywhere, and only the differences show the object.
    """

    side: int
    first: float
    last: float
    stretch: bool

    def steps(self, total: int) -> slice:
        """The sampler steps of the window: at least one."""
        begin = min(math.floor(self.first * total), total - 1)
        return slice(begin, max(math.ceil(self.last * total), begin + 1))


@dataclass(frozen=True)
class NullText:
    """Settings of null-text inversion: see `models.invert.null_text`."""

    rate: float
    inner_steps: int
    tolerance: float
    tolerance_growth: float


class LatentDiffusion:
    """A frozen latent diffusion model with DDIM; calling it renders controls, `begin` inverts pictures."""

    def __init__(
        self, pipe: StableDiffusionPipeline, digest: str, resolution: int, steps: int, guidance: float, last: int,
        recompute: str, maps: MapWindow, softening: dict[str, Softening], schedules: Schedules, null_text: NullText,
        segmenter: Segmenter, cache: TensorCache, lr_scale: dict[str, float],
    ) -> None:  # fmt: skip
        if recompute not in RECOMPUTE:
            raise UserError(f"generator.recompute={recompute}: allowed are {', '.join(RECOMPUTE)}")
        if pipe.scheduler.config.prediction_type != "epsilon":
            raise UserError(f"prediction_type={pipe.scheduler.config.prediction_type}: allowed is epsilon")
        self.vae: AutoencoderKL = pipe.vae.requires_grad_(False).eval()
        self.unet: UNet2DConditionModel = pipe.unet.requires_grad_(False).eval()
        self.text_encoder: nn.Module = pipe.text_encoder.requires_grad_(False).eval()
        self.tokenizer = pipe.tokenizer
        self.device = pipe.device
        scheduler = pipe.scheduler
        self.schedule: Schedule = ddim_schedule(
            scheduler.alphas_cumprod, steps, scheduler.config.steps_offset, scheduler.final_alpha_cumprod.item()
        )
        attention.install(self.unet)
        if recompute == "block":
            self.unet.enable_gradient_checkpointing()
        shrink = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if resolution % shrink:
            raise UserError(f"generator.resolution={resolution}: allowed are multiples of {shrink}")
        self.latent_side = resolution // shrink
        self.digest, self.resolution, self.guidance = digest, resolution, guidance
        self.recipe = repr((digest, resolution, steps, guidance))
        self.last, self.recompute = last, recompute
        self.maps, self.softening, self.schedules, self.settings = maps, softening, schedules, null_text
        self.segmenter, self.cache, self.lr_scale = segmenter, cache, lr_scale

    # --- the four networks ----------------------------------------------------------------------------------

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c y x"]:
        """Scaled latents E(x) of images in [0, 1] (the posterior's mean)."""
        mean = self.vae.encode(images.to(self.vae.dtype) * 2 - 1).latent_dist.mode()
        return mean.to(images.dtype) * self.vae.config.scaling_factor

    def decode(self, latents: Float[Tensor, "b c y x"]) -> Float[Tensor, "b 3 h w"]:
        """Images of scaled latents, cut to [0, 1]; the cut lets the gradient pass."""
        decoded = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        image = decoded.to(latents.dtype) / 2 + 0.5
        return image + (image.clamp(0, 1) - image).detach()

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "b l d"]:
        """Text embeddings, padded to the model's length."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.tokenizer.model_max_length, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            return self.text_encoder(tokens.to(self.device))[0].float()

    def predict(
        self, z: Tensor, t: Tensor, text: Tensor, maps: attention.MapControl | None = None
    ) -> Float[Tensor, "b c y x"]:
        """The UNet's noise prediction."""
        dtype = self.unet.dtype
        kwargs = None if maps is None else {"maps": maps}
        return self.unet(z.to(dtype), t, text.to(dtype), cross_attention_kwargs=kwargs).sample.to(z.dtype)

    # --- the chain --------------------------------------------------------------------------------------------

    def step(
        self, z: Tensor, text: Tensor, null: Tensor, i: int, anchor: Anchor | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Guided sampler step i -> (next latent, x0-prediction), with the anchor's injection and blending."""
        share = i / len(self.schedule)
        maps = None
        if record is not None:
            maps = attention.MapControl(record=record, rows=len(z))
        elif anchor is not None and bool((active := anchor.inject > share).any()):
            maps = attention.MapControl(
                inject={layer: m[:, i] for layer, m in anchor.maps.items() if i < m.shape[1]}, active=active
            )
        eps_null, eps_text = self.predict(
            torch.cat([z, z]), self.schedule.timesteps[i], torch.cat([null, text]), maps
        ).chunk(2)
        eps = guide(eps_null, eps_text, self.guidance)
        z, x0 = ddim_step(z, eps, self.schedule.alphas[i], self.schedule.alphas_next[i])
        if anchor is not None and bool((held := anchor.blend > share).any()):
            free = torch.where(held[:, None, None, None], anchor.latent_mask, torch.ones_like(anchor.latent_mask))
            z = free * z + (1 - free) * anchor.templates[:, i]
        return z, x0

    def chain(self, controls: Controls, anchor: Anchor) -> list[Float[Tensor, "b c y x"]]:
        """The x0-predictions of all steps."""
        z, predictions = controls["latent"], []
        for i in range(len(self.schedule)):
            text = anchor.text[:, i] + controls["text"][:, i]
            null = anchor.null[:, i] + controls["null"][:, i]
            if self.recompute == "step" and torch.is_grad_enabled():
                z, x0 = checkpoint(self.step, z, text, null, i, anchor, use_reentrant=False)
            else:
                z, x0 = self.step(z, text, null, i, anchor)
            predictions.append(x0)
        return predictions

    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        """Scenes of the last `last` x0-predictions; the last one is the picture that counts."""
        latents = self.chain(controls, anchor)[-self.last :]
        images = self.decode(torch.cat(latents)).chunk(len(latents))
        return [Scene(image, z, image.unsqueeze(1)) for image, z in zip(images, latents, strict=True)]

    # --- pictures of prompts -----------------------------------------------------------------------------------

    def noise(self, seeds: Sequence[int]) -> Float[Tensor, "b c y x"]:
        """Start latents, each drawn from its own seed; the same on every device."""
        shape = (self.unet.config.in_channels, self.latent_side, self.latent_side)
        draws = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        return torch.stack(draws).to(self.device)

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Pictures of prompts, without any edit; each start latent is drawn from its own seed."""
        z, text = self.noise(seeds), self.embed(prompts)
        x0, null = z, self.embed([""]).expand_as(text)
        for i in range(len(self.schedule)):
            z, x0 = self.step(z, text, null, i)
        return self.decode(x0)

    # --- from questions to a start -----------------------------------------------------------------------------

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise UserError for what can be seen to fail before anything is computed."""
        if self.guidance == 1 and any(p.image is not None for p in problems):
            raise UserError("generator.guidance=1: null-text inversion does nothing there, choose a value above 1")
        if self.maps.side not in (sides := self.map_sides()):
            raise UserError(f"generator.maps.side={self.maps.side}: allowed are {', '.join(map(str, sides))}")
        for problem in problems:
            edit = problem.edit
            for prompt in (edit.source, edit.target):
                words.token_spans(self.tokenizer, prompt)
            if needs_mask(problem):
                words.word_tokens(self.tokenizer, edit.source, problem.region)
            if edit.source != edit.target:
                words.word_tokens(self.tokenizer, edit.source, edit.source_words)
                words.word_tokens(self.tokenizer, edit.target, edit.target_words)

    def map_sides(self) -> list[int]:
        """The sides of the XA maps that the UNet has, in latent pixels."""
        kinds = self.unet.config.down_block_types
        levels = [-(-self.latent_side // 2**i) for i in range(len(kinds))]
        crossed = [side for side, kind in zip(levels, kinds, strict=True) if "CrossAttn" in kind]
        return sorted({*crossed, levels[-1]})

    @torch.enable_grad()
    def invert(
        self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]
    ) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b t l d"]]:
        """Null-text inversion of pictures -> start latents and null embeddings; kept per picture in the cache.

        A batch is computed whole unless the cache has every picture of it: its numbers then never depend on
        what an earlier run left behind.
        """
        setting = [self.digest, len(self.schedule), self.guidance, self.settings, len(images), torch.get_num_threads()]
        keys = [self.cache.key(image, prompt, *setting) for image, prompt in zip(images, prompts, strict=True)]
        if (found := self.cache.load(keys)) is not None:
            return found["latent"].to(self.device), found["null"].to(self.device)
        text, null = self.embed(prompts), self.embed([""] * len(prompts))
        with torch.no_grad():
            z0 = self.encode(images)
        trajectory = invert.ddim_invert(self.predict, z0, text, self.schedule)
        nulls = invert.null_text(
            self.predict, trajectory, text, null, self.schedule, self.guidance, self.settings.rate,
            self.settings.inner_steps, self.settings.tolerance, self.settings.tolerance_growth,
        )  # fmt: skip
        # Contiguous, as what the cache gives back: kernels may round by a tensor's layout.
        latent = trajectory[:, 0].contiguous()
        self.cache.save(keys, latent=latent, null=nulls)
        return latent, nulls

    @torch.no_grad()
    def record(
        self, latent: Tensor, text: Float[Tensor, "b l d"], null: Float[Tensor, "b t l d"], needed: int
    ) -> tuple[dict[str, Tensor], Float[Tensor, "b t c y x"], Float[Tensor, "b c y x"]]:
        """One pass with the original prompt -> XA maps per layer (b, needed, heads, q, l) of the `needed` first steps,
        latents after each step, and the last x0-prediction."""
        z, x0, steps, templates = latent, latent, [], []
        for i in range(len(self.schedule)):
            maps: dict[str, Tensor] = {}
            z, x0 = self.step(z, text, null[:, i], i, record=maps if i < needed else None)
            if maps:
                steps.append(maps)
            templates.append(z)
        stacked = {layer: torch.stack([m[layer] for m in steps], dim=1) for layer in steps[0]} if steps else {}
        return stacked, torch.stack(templates, dim=1), x0

    @torch.no_grad()
    def word_maps(
        self, image: Float[Tensor, "3 h w"], prompt: str, phrase: str
    ) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "y x"]]:
        """Where a picture, inverted and rendered again, attends to each word of its prompt, and to a phrase of it.

        Maps of side `maps.side`, averaged over heads, layers and the steps of `maps`, each divided by its maximum;
        the phrase's is the one that a mask of it is made from. The picture is a batch of its own, so that its maps do
        not depend on neighbours: where `begin` had it alone, too, its inversion comes from the cache.
        """
        latent, null = self.invert(image[None].to(self.device), [prompt])
        window = self.maps.steps(len(self.schedule))
        recorded, _, _ = self.record(latent, self.embed([prompt]), null, window.stop)
        spans = [*words.token_spans(self.tokenizer, prompt), words.word_tokens(self.tokenizer, prompt, phrase)]
        maps = torch.cat([attention.word_map(recorded, [span], self.maps.side, window) for span in spans])[:, 0]
        return maps[:-1], maps[-1]

    def segment(
        self, images: Float[Tensor, "b 3 h w"], recorded: dict[str, Tensor], problems: Sequence[Problem]
    ) -> Float[Tensor, "b 1 h w"]:
        """The segmenter's masks of what the problems' words name, before they are softened."""
        positions = [words.word_tokens(self.tokenizer, p.edit.source, p.region) for p in problems]
        maps = attention.word_map(recorded, positions, self.maps.side, self.maps.steps(len(self.schedule)))
        maps = attention.stretched(maps) if self.maps.stretch else maps
        return self.segmenter(images, maps, [p.picture for p in problems])

    def masks(
        self, images: Float[Tensor, "b 3 h w"], recorded: dict[str, Tensor], problems: Sequence[Problem]
    ) -> Float[Tensor, "b 1 h w"]:
        """Where each problem's words are: the mask that it brings, or the segmenter's; 0 where none is needed."""
        masks = torch.zeros_like(images[:, :1])
        if rows := [i for i, problem in enumerate(problems) if needs_mask(problem)]:
            some = {layer: maps[rows] for layer, maps in recorded.items()}
            masks[rows] = self.segment(images[rows], some, [problems[i] for i in rows])
        for mask, problem in zip(masks, problems, strict=True):
            if problem.mask is not None:
                mask.copy_(problem.mask)
        return masks

    @torch.no_grad()
    def begin(self, problems: Sequence[Problem], schedules: Schedules) -> Start:
        """Invert the pictures or draw them, find the free region, exchange the words (DiG-IN, Algorithm 2, before the
        loop)."""
        edits = [p.edit for p in problems]
        schedules = {**self.schedules, **schedules}
        source_text, target_text = self.embed([e.source for e in edits]), self.embed([e.target for e in edits])
        n, steps = len(problems), len(self.schedule)
        drawn, null = self.noise([p.seed for p in problems]), self.embed([""])[:, None].repeat(n, steps, 1, 1)
        latent = drawn.clone()
        given = [i for i, problem in enumerate(problems) if problem.image is not None]
        pictures = torch.stack([p.image for p in problems if p.image is not None]).to(self.device) if given else None
        if pictures is not None:
            latent[given], null[given] = self.invert(pictures, [edits[i].source for i in given])
        mapped = self.maps.steps(steps).stop if any(map(needs_mask, problems)) else 0
        needed = max(mapped, math.ceil(max(schedules["inject"]) * steps))
        recorded, templates, encoded = self.record(latent, source_text, null, needed)
        images = self.decode(encoded)
        if pictures is not None:
            images[given], encoded[given] = pictures, self.encode(pictures)
        masks, keeps = self.masks(images, recorded, problems), [p.keep for p in problems]
        region = {kind: free(soften(masks), masks, keeps) for kind, soften in self.softening.items()}
        latent_mask = F.interpolate(region["latents"], size=latent.shape[-2:], mode="area")
        if again := [i for i, problem in enumerate(problems) if problem.redrawn]:
            # Square roots of the shares, so that a mixture of two noises is as long as either.
            latent[again] = latent_mask[again].sqrt() * drawn[again] + (1 - latent_mask[again]).sqrt() * latent[again]
        matrices = torch.stack([
            words.alignment(self.tokenizer, e.source, e.target, e.source_words, e.target_words, old, new)
            if e.source != e.target else torch.eye(len(old))
            for e, old, new in zip(edits, source_text, target_text, strict=True)
        ]).to(self.device)  # fmt: skip
        injected = {layer: torch.einsum("bthqk,bkl->bthql", m, matrices) for layer, m in recorded.items()}
        base = Anchor(
            text=target_text[:, None].expand(-1, steps, -1, -1), null=null, norm=latent.flatten(1).norm(dim=1),
            mask=region["pixels"], latent_mask=latent_mask,
            original=images, encoded=encoded, templates=templates, maps=injected,
            inject=torch.zeros(n, device=self.device), blend=torch.zeros(n, device=self.device),
        )  # fmt: skip
        anchors = [
            replace(base, inject=torch.full_like(base.inject, share), blend=torch.full_like(base.blend, held))
            for share, held in product(schedules["inject"], schedules["blend"])
        ]
        zeros = torch.zeros_like(base.text)
        return Start({"latent": latent, "text": zeros, "null": zeros.clone()}, anchors, described(masks, problems))


def needs_mask(problem: Problem) -> bool:
    """Whether the segmenter has to find where a problem's words are."""
    return problem.keep in ("background", "foreground") and problem.mask is None


def load(
    path: str, revision: str | None, dtype: str, device: str, needs: str, **settings: Any
) -> LatentDiffusion:  # fmt: skip
    """Load a pipeline folder or hub id and wrap it; `settings` are the arguments of `LatentDiffusion`.

    Raises UserError in one line if the weights are not there; `needs` says how to get them.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    if not Path(path).exists() and (ROOT / path).exists():
        path = str(ROOT / path)  # the shipped folders are found from anywhere
    missing = [name for name in REQUIRED if Path(path).exists() and not (Path(path) / name).exists()]
    if missing:
        raise UserError(f"generator.path={path}: {', '.join(missing)} missing; wanted is a folder in diffusers' layout")
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            path, revision=revision, dtype=getattr(torch, dtype), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        reason = (
            str(error).strip().splitlines()[0] if Path(path).exists() else "neither a folder nor in the hub's cache"
        )
        raise UserError(
            f"generator.path={path}: no weights ({reason}); {needs}; `python run.py` alone needs none"
        ) from error
    return LatentDiffusion(pipe.to(device), digest(pipe), **settings)


def digest(pipe: StableDiffusionPipeline) -> str:
    """SHA-256 over the weights of the three networks, in the order of their names."""
    sha = hashlib.sha256()
    for network in (pipe.vae, pipe.text_encoder, pipe.unet):
        for name, value in sorted(network.state_dict().items()):
            sha.update(name.encode())
            sha.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
