"""The plain loop of published code, the reference for the runner's speed (scripts/bench/bench.py).

One image at a time in float32; every block of UNet and decoder is recomputed in the backward pass; each x0-prediction
is decoded separately and each classifier has its own crops; attention is computed explicitly wherever maps are recorded
or injected; the schedules of Prompt-to-Prompt are compared one after the other. Equal controls give the runner's loss
and gradient (tests/scripts/bench/test_plain_loop.py)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.models.generator.cross_attention import AttentionControl, CrossAttnProcessor
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.noise_schedule import classifier_free_guidance, ddim_step
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.prompt_diffusion import PromptDiffusion, PromptTuningContext
from classifier_lens.models.generator.samplers import DdimSampler
from classifier_lens.runner.optimization.objective import evaluate
from classifier_lens.runner.types import Controls, Objective, Scene

# (scene, step) -> the scene with the classifiers' crops of this step
Augment = Callable[[Scene, int], Scene]


class UnfusedSelfAttention:
    """Self-attention, computed explicitly while the maps of the text layers are used, and fused otherwise."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, maps: AttentionControl | None = None,
    ) -> Tensor:  # fmt: skip
        q, k, v = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        if maps is None:
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=attn.scale)
        else:
            out = (q @ k.transpose(-1, -2) * attn.scale).softmax(dim=-1) @ v
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(-2)))


@dataclass(frozen=True)
class PlainModel:
    """A diffusion model of the plain loop. networks: a copy; sampler: DDIM; last: number of the last x0-predictions in
    the loss; blend_from: first step of background blending."""

    networks: Networks
    sampler: DdimSampler
    last: int
    blend_from: int


def plain_model(generator: LatentDiffusion) -> PlainModel:
    """The same weights in float32, with gradient checkpointing. Raises TypeError for another sampler than DDIM."""
    if not isinstance(generator.sampler, DdimSampler):
        raise TypeError(f"the plain loop needs a DDIM sampler, not {type(generator.sampler).__name__}")
    networks = copy.deepcopy(generator.networks)
    for network in (networks.unet, networks.vae, networks.text_encoder):
        network.float().to(memory_format=torch.contiguous_format)
    enable_gradient_checkpointing(networks)
    text = {n for n in networks.unet.attn_processors if n.removesuffix(".processor").endswith("attn2")}
    networks.unet.set_attn_processor({
        name: CrossAttnProcessor(name.removesuffix(".processor")) if name in text else UnfusedSelfAttention()
        for name in networks.unet.attn_processors
    })  # fmt: skip
    return PlainModel(networks, generator.sampler, generator.last_x0_predictions, generator.background_blend_start)


def enable_gradient_checkpointing(networks: Networks) -> None:
    """Recompute every block of UNet and autoencoder in the backward pass."""
    networks.unet.enable_gradient_checkpointing()
    networks.vae.enable_gradient_checkpointing()


# --- initialization ------------------------------------------------------------------------------------------


def invert(model: PlainModel, image: Float[Tensor, "1 3 h w"], prompt: str) -> tuple[Tensor, Tensor]:
    """z_T and the null embeddings N_t of an image, by null-text inversion."""
    networks, schedule, settings = model.networks, model.sampler.schedule, model.sampler.null_text
    assert settings is not None
    text, null = networks.embed([prompt]), networks.embed([""])
    with torch.no_grad():
        trajectory = [networks.encode(image)]
        for i in reversed(range(len(schedule))):
            eps = networks.predict(trajectory[-1], schedule.timesteps[i], text)
            trajectory.append(
                ddim_step(trajectory[-1], eps, schedule.alphas_cumprod_next[i], schedule.alphas_cumprod[i])[0]
            )
    z, nulls = trajectory[-1], []
    for i in range(len(schedule)):
        t, levels, target_latent = (
            schedule.timesteps[i],
            (schedule.alphas_cumprod[i], schedule.alphas_cumprod_next[i]),
            trajectory[-2 - i],
        )
        null = null.detach().clone().requires_grad_()
        adam = torch.optim.Adam([null], lr=settings.lr * (1 - i / 100))
        with torch.no_grad():
            eps_text = networks.predict(z, t, text)
        for _ in range(settings.inner_steps):
            step, _ = ddim_step(
                z,
                classifier_free_guidance(networks.predict(z, t, null), eps_text, model.sampler.guidance_scale),
                *levels,
            )
            error = ((step - target_latent) ** 2).mean()
            if error < settings.early_stop_epsilon + i * settings.early_stop_epsilon_growth:
                break
            adam.zero_grad()
            error.backward()
            adam.step()
        nulls.append(null.detach())
        with torch.no_grad():
            eps_null, eps_text = networks.predict(torch.cat([z, z]), t, torch.cat([null, text])).chunk(2)
            z, _ = ddim_step(z, classifier_free_guidance(eps_null, eps_text, model.sampler.guidance_scale), *levels)
    return trajectory[-1], torch.stack(nulls, dim=1)


@torch.no_grad()
def record_attention_maps(
    model: PlainModel, latent: Tensor, text: Float[Tensor, "1 l d"], nulls: Tensor
) -> list[dict[str, Tensor]]:
    """The attention maps of every step of a chain with the original prompt."""
    z, maps_by_step = latent, []
    for i in range(len(model.sampler.schedule)):
        maps: dict[str, Tensor] = {}
        recording = AttentionControl(recorded_maps=maps, num_recorded=1)
        eps = model.sampler.predict(model.networks, z, {"text": text, "null": nulls[:, i]}, i, recording)
        z, _ = model.sampler.advance(z, eps, torch.zeros_like(z), i)
        maps_by_step.append(maps)
    return maps_by_step


@torch.no_grad()
def select_schedule(
    model: PlainModel, controls: Controls, contexts: Sequence[DiffusionContext], objective: Objective
) -> int:
    """The index of the schedule with the lowest loss."""
    totals = [
        float(evaluate(objective, render_latent(model, chain(model, controls, context)[-1])).total)
        for context in contexts
    ]
    return totals.index(min(totals))


# --- optimization --------------------------------------------------------------------------------------------


def chain(model: PlainModel, controls: Controls, context: DiffusionContext) -> list[Tensor]:
    """The x0-predictions of the last steps of an image's chain."""
    z, predictions = controls["latent"], []
    steps = len(model.sampler.schedule)
    for i in range(steps):
        embeddings = {name: (base + controls[name])[:, i] for name, base in context.embeddings.items()}
        if 0 <= i - model.blend_from < float(context.background_blend_steps) * steps - 1e-4:
            z = context.latent_mask * z + (1 - context.latent_mask) * context.original_trajectory[:, i]
        maps = None
        if float(context.cross_replace_steps) > i / steps:
            injected = {layer: m[:, i] for layer, m in context.attention_maps.items() if i < m.shape[1]}
            maps = AttentionControl(injected, torch.ones(1, dtype=torch.bool, device=z.device))
        eps = model.sampler.predict(model.networks, z, embeddings, i, maps)
        z, x0 = model.sampler.advance(z, eps, torch.zeros_like(z), i)
        predictions.append(x0)
    return predictions[-model.last :]


def render_latent(model: PlainModel, latent: Tensor) -> Scene:
    """The decoded scene of one x0-prediction."""
    image = model.networks.decode(latent)
    return Scene(image, latent, image.unsqueeze(1))


def loss_and_gradient(
    model: PlainModel,
    controls: Controls,
    context: DiffusionContext,
    objective: Objective,
    augment: Augment,
    k: int,
    classifiers: int,
) -> tuple[float, Controls]:
    """The loss of step k, a weighted mean over the last x0-predictions, and its gradient. classifiers: number of
    classifiers with their own crops."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in controls.items()}
    latents = chain(model, leaves, context)
    total = torch.zeros((), device=latents[-1].device)
    for i, latent in enumerate(latents):
        scene = render_latent(model, latent)
        with torch.no_grad():
            evaluate(objective, scene)  # selects the best step
        for _ in range(classifiers):
            views = augment(scene, k)
        total = total + (i + 1) / sum(range(len(latents) + 1)) * evaluate(objective, views).total.sum()
    total.backward()
    return float(total.detach()), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def optimize(
    model: PlainModel, controls: Controls, context: DiffusionContext, objective: Objective, augment: Augment,
    rates: Mapping[str, float], steps: int, classifiers: int,
) -> Controls:  # fmt: skip
    """The controls after `steps` steps of Adam; the norm of z_T is kept."""
    values = {name: value.detach().clone() for name, value in controls.items()}
    adam = torch.optim.Adam([{"params": [value], "lr": rates[name]} for name, value in values.items()])
    latent_norm = controls["latent"].norm()
    for k in range(steps):
        _, gradients = loss_and_gradient(model, values, context, objective, augment, k, classifiers)
        for name, value in values.items():
            value.grad = gradients[name]
        adam.step()
        values["latent"].mul_(latent_norm / values["latent"].norm())
    return values


# --- prompts -------------------------------------------------------------------------------------------------


def single_image_scenes(
    prompts: PromptDiffusion, controls: Controls, context: PromptTuningContext
) -> Sequence[Callable[[], Scene]]:
    """The images of one prompt, as functions that each render one scene."""

    def render(j: int) -> Scene:
        step_inputs = {name: values[j : j + 1] for name, values in context.step_inputs.items()}
        return prompts(controls, replace(context, step_inputs=step_inputs))[-1]

    return [partial(render, j) for j in range(len(context.step_inputs["latent"]))]


def prompt_loss(scenes: Sequence[Callable[[], Scene]], objective: Objective) -> float:
    """The mean loss of images that are rendered one after the other; with gradients enabled, they add up on the
    leaves."""
    values: list[Any] = []
    for scene in scenes:
        total = evaluate(objective, scene()).total.mean() / len(scenes)
        if torch.is_grad_enabled():
            total.backward()
        values.append(total.detach())
    return float(torch.stack(values).sum())
