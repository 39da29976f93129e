"""DiG-IN's loop like its published code, with parts of diffusers and PyTorch alone. `experiment=dig_in/…` has to
reproduce it (tests/scripts/bench/test_published_loop.py, docs/method.md).

One image at a time, in the precision of the networks, without gradient checkpointing. Crops and masks are arguments, so
that both loops have the same ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import Attention, AttnProcessor
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator.pipeline.networks import Networks

# (image, latent, optimization step, sampler steps to the last one) -> the loss
Loss = Callable[[Tensor, Tensor, int, int], Tensor]


class AttentionReplay:
    """Text attention of a layer that records the maps of a chain and replays those of the first steps in later
    chains."""

    def __init__(self, layer: str) -> None:
        self.layer, self.maps = layer, list[Tensor]()
        self.recording, self.step, self.cross_replace_steps = False, 0, 0

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        projected_states = (
            attn.to_q(hidden_states),
            attn.to_k(encoder_hidden_states),
            attn.to_v(encoder_hidden_states),
        )
        q, k, v = map(attn.head_to_batch_dim, projected_states)
        maps = attn.get_attention_scores(q, k)
        null, text = maps.chunk(2)
        if self.recording:
            self.maps.append(text.detach())
        elif self.step < self.cross_replace_steps:
            maps = torch.cat([null, self.maps[self.step]])
        projected: Tensor = attn.to_out[0](attn.batch_to_head_dim(torch.bmm(maps, v)))
        return projected


@dataclass(frozen=True)
class SamplerInputs:
    """Inputs of the chain of one image. null_embeddings, text_embeddings: of every step; background_latents: latents of
    the original's chain before each step; background_mask: 1 where blending preserves them; background_blend_steps,
    cross_replace_steps: number of first steps in which they, and the recorded maps, replace those of the chain."""

    null_embeddings: Float[Tensor, "t l d"]
    text_embeddings: Float[Tensor, "t l d"]
    background_latents: Sequence[Tensor] = ()
    background_mask: Float[Tensor, "1 1 y x"] | float = 0.0
    background_blend_steps: int = 0
    cross_replace_steps: int = 0


@dataclass
class PublishedLoop:
    """Networks with a DDIM scheduler of `steps` steps and a guidance scale.

    num_averaged_predictions: number of the last x0-predictions whose losses are averaged.
    """

    networks: Networks
    steps: int
    guidance_scale: float
    num_averaged_predictions: int = 3
    replays: list[AttentionReplay] = field(default_factory=list)

    def __post_init__(self) -> None:
        networks = copy.deepcopy(self.networks)
        self.unet, self.vae, self.embed = networks.unet, networks.vae, networks.embed
        self.tokenizer = networks.tokenizer
        self.scheduler = DDIMScheduler.from_config(networks.scheduler.config)
        self.scheduler.set_timesteps(self.steps)
        for name in ("alphas_cumprod", "final_alpha_cumprod"):
            setattr(self.scheduler, name, getattr(self.scheduler, name).to(networks.unet.dtype))
        processors: dict[str, AttentionReplay | AttnProcessor] = {}
        for name in self.unet.attn_processors:
            processors[name] = AttentionReplay(name.removesuffix(".processor")) if "attn2" in name else AttnProcessor()
        self.replays = [p for p in processors.values() if isinstance(p, AttentionReplay)]
        self.unet.set_attn_processor(processors)

    def token_ids(self, prompt: str) -> list[int]:
        """The token ids of a prompt, padded to the tokenizer's length."""
        return list(self.tokenizer(prompt, padding="max_length").input_ids)

    def predict_noise(self, z: Tensor, i: int, null: Tensor, text: Tensor, guidance: float) -> Tensor:
        """The guided noise prediction of step i."""
        for replay in self.replays:
            replay.step = i
        embeddings = torch.stack([null, text])
        eps_null, eps_text = self.unet(torch.cat([z, z]), self.scheduler.timesteps[i], embeddings).sample.chunk(2)
        return eps_null + guidance * (eps_text - eps_null)

    def chain(self, z: Tensor, inputs: SamplerInputs, recorded_latents: list[Tensor] | None = None) -> list[Tensor]:
        """The last x0-predictions. recorded_latents: list to which the latents before each step are appended."""
        for replay in self.replays:
            replay.cross_replace_steps = inputs.cross_replace_steps
        x0_predictions = []
        for i, t in enumerate(self.scheduler.timesteps):
            if i < inputs.background_blend_steps:
                z = inputs.background_mask * inputs.background_latents[i] + (1 - inputs.background_mask) * z
            if recorded_latents is not None:
                recorded_latents.append(z)
            eps = self.predict_noise(z, i, inputs.null_embeddings[i], inputs.text_embeddings[i], self.guidance_scale)
            step_output = self.scheduler.step(eps, t, z, eta=0.0)
            z = step_output.prev_sample
            x0_predictions.append(step_output.pred_original_sample)
        return x0_predictions[-self.num_averaged_predictions :]

    def decode(self, z: Tensor) -> Tensor:
        """The image of a latent; clamped values have no gradient."""
        return (self.vae.decode(z / self.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    def invert(self, image: Float[Tensor, "1 3 h w"], prompt: str) -> tuple[Tensor, Float[Tensor, "t l d"]]:
        """z_T and null embeddings of an image: at most 10 updates per step; the last update is the one after the first
        loss below 1e-5 + 2e-5 i."""
        alphas = self.scheduler.alphas_cumprod
        levels = [self.scheduler.final_alpha_cumprod, *(alphas[t] for t in self.scheduler.timesteps.flip(0))]
        text, null = self.embed([prompt])[0], self.embed([""])[0]
        with torch.no_grad():
            mean = self.vae.encode(image * 2 - 1).latent_dist.mean
            latents = [mean * self.vae.config.scaling_factor]
            for j, (clean, noisy) in enumerate(pairwise(levels)):
                z, eps = latents[-1], self.predict_noise(latents[-1], self.steps - 1 - j, text, text, 1.0)
                start = (z - (1 - clean).sqrt() * eps) / clean.sqrt()
                latents.append(noisy.sqrt() * start + (1 - noisy).sqrt() * eps)
        z, nulls = latents[-1], []
        for i, t in enumerate(self.scheduler.timesteps):
            null = null.detach().clone().requires_grad_()
            adam = torch.optim.Adam([null], lr=1e-2 * (1 - i / 100))
            for _ in range(10):
                prediction = self.scheduler.step(
                    self.predict_noise(z, i, null, text, self.guidance_scale), t, z, eta=0.0
                ).prev_sample
                loss = torch.nn.functional.mse_loss(prediction, latents[-2 - i])
                adam.zero_grad()
                loss.backward()
                adam.step()
                if loss.item() < 1e-5 + 2e-5 * i:
                    break
            with torch.no_grad():
                z = self.scheduler.step(
                    self.predict_noise(z, i, null, text, self.guidance_scale), t, z, eta=0.0
                ).prev_sample
            nulls.append(null.detach())
        return latents[-1], torch.stack(nulls)

    @torch.no_grad()
    def record_attention_maps(self, z: Tensor, inputs: SamplerInputs) -> list[Tensor]:
        """Record the maps of a chain; returns the latents before each of its steps."""
        recorded_latents: list[Tensor] = []
        for replay in self.replays:
            replay.recording = True
        self.chain(z, inputs, recorded_latents)
        for replay in self.replays:
            replay.recording = False
        return recorded_latents

    def optimize(
        self, z: Tensor, inputs: SamplerInputs, loss: Loss, rates: tuple[float, float], steps: int, cosine: bool,
        clip: float | None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """z_T and the changes of the embeddings after optimization by Adam. rates: of z_T and of the embeddings;
        cosine: whether to decay all rates to a tenth of the latter; clip: largest absolute element of each gradient."""
        start, end = z, rates[1] / 10
        values = {
            "latent": z.clone(),
            "text": torch.zeros_like(inputs.text_embeddings),
            "null": torch.zeros_like(inputs.null_embeddings),
        }
        leaves = {name: value.requires_grad_() for name, value in values.items()}
        groups = [{"params": [leaf], "lr": rates[name != "latent"]} for name, leaf in leaves.items()]
        adam = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=end) if cosine else None
        for k in range(steps):
            changed = replace(
                inputs,
                text_embeddings=inputs.text_embeddings + leaves["text"],
                null_embeddings=inputs.null_embeddings + leaves["null"],
            )
            x0_predictions = self.chain(leaves["latent"], changed)
            count = len(x0_predictions)
            shares = [(j + 1) / sum(range(count + 1)) for j in range(count)]
            losses = [loss(self.decode(x0), x0, k, count - 1 - j) for j, x0 in enumerate(x0_predictions)]
            weighted = [share * value for share, value in zip(shares, losses, strict=True)]
            adam.zero_grad()
            torch.stack(weighted).sum().backward()
            if clip is not None:
                for leaf in leaves.values():
                    torch.nn.utils.clip_grad_norm_(leaf, clip, math.inf)
            adam.step()
            with torch.no_grad():
                leaves["latent"].mul_(start.norm() / leaves["latent"].norm())
            if schedule is not None:
                schedule.step()
        return {name: leaf.detach() for name, leaf in leaves.items()}
