"""The plain loop that the runner's speed is measured against (scripts/bench/bench.py): what published code does.

One picture at a time in float32; every block of UNet and decoder is computed again in the backward pass; each
x0-prediction is decoded by itself and each classifier is shown crops of its own; attention is written out wherever
maps are recorded or injected; the schedules of Prompt-to-Prompt are compared one after the other. Equal controls give
the runner's loss and gradient (tests/scripts/bench/test_plain_loop.py).
"""

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

# (scene, step) -> the scene with the crops that classifiers are shown at this step
Augment = Callable[[Scene, int], Scene]


class UnfusedSelfAttention:
    """Self-attention that is written out while the text layers' maps are looked at, and fused otherwise."""

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
    """A diffusion model as the plain loop has it. networks: a copy of the model's; sampler: DDIM; last, blend_from: see
    `models.generator.chain`."""

    networks: Networks
    sampler: DdimSampler
    last: int
    blend_from: int


def plain_model(generator: LatentDiffusion) -> PlainModel:
    """The same weights in float32, with every block computed again. Raises TypeError for another sampler than DDIM."""
    if not isinstance(generator.sampler, DdimSampler):
        raise TypeError(f"the plain loop has DDIM, not {type(generator.sampler).__name__}")
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
    """Have every block of UNet and autoencoder computed again in the backward pass."""
    networks.unet.enable_gradient_checkpointing()
    networks.vae.enable_gradient_checkpointing()


# --- before the loop -----------------------------------------------------------------------------------------


def invert(own: PlainModel, image: Float[Tensor, "1 3 h w"], prompt: str) -> tuple[Tensor, Tensor]:
    """z_T and the null embeddings N_t of a picture, by null-text inversion."""
    networks, plan, settings = own.networks, own.sampler.schedule, own.sampler.null_text
    assert settings is not None
    text, null = networks.embed([prompt]), networks.embed([""])
    with torch.no_grad():
        trajectory = [networks.encode(image)]
        for i in reversed(range(len(plan))):
            eps = networks.predict(trajectory[-1], plan.timesteps[i], text)
            trajectory.append(ddim_step(trajectory[-1], eps, plan.alphas_cumprod_next[i], plan.alphas_cumprod[i])[0])
    z, nulls = trajectory[-1], []
    for i in range(len(plan)):
        t, levels, wanted = plan.timesteps[i], (plan.alphas_cumprod[i], plan.alphas_cumprod_next[i]), trajectory[-2 - i]
        null = null.detach().clone().requires_grad_()
        adam = torch.optim.Adam([null], lr=settings.lr * (1 - i / 100))
        with torch.no_grad():
            eps_text = networks.predict(z, t, text)
        for _ in range(settings.inner_steps):
            step, _ = ddim_step(
                z, classifier_free_guidance(networks.predict(z, t, null), eps_text, own.sampler.guidance_scale), *levels
            )
            error = ((step - wanted) ** 2).mean()
            if error < settings.early_stop_epsilon + i * settings.early_stop_epsilon_growth:
                break
            adam.zero_grad()
            error.backward()
            adam.step()
        nulls.append(null.detach())
        with torch.no_grad():
            eps_null, eps_text = networks.predict(torch.cat([z, z]), t, torch.cat([null, text])).chunk(2)
            z, _ = ddim_step(z, classifier_free_guidance(eps_null, eps_text, own.sampler.guidance_scale), *levels)
    return trajectory[-1], torch.stack(nulls, dim=1)


@torch.no_grad()
def record_attention_maps(
    own: PlainModel, latent: Tensor, text: Float[Tensor, "1 l d"], nulls: Tensor
) -> list[dict[str, Tensor]]:
    """The attention maps of every step of a pass with the original prompt."""
    z, found = latent, []
    for i in range(len(own.sampler.schedule)):
        maps: dict[str, Tensor] = {}
        recording = AttentionControl(recorded_maps=maps, num_recorded=1)
        eps = own.sampler.predict(own.networks, z, {"text": text, "null": nulls[:, i]}, i, recording)
        z, _ = own.sampler.advance(z, eps, torch.zeros_like(z), i)
        found.append(maps)
    return found


@torch.no_grad()
def select_schedule(
    own: PlainModel, controls: Controls, contexts: Sequence[DiffusionContext], objective: Objective
) -> int:
    """Which of the schedules has the lowest loss."""
    totals = [float(evaluate(objective, render_latent(own, chain(own, controls, c)[-1])).total) for c in contexts]
    return totals.index(min(totals))


# --- the loop ------------------------------------------------------------------------------------------------


def chain(own: PlainModel, controls: Controls, context: DiffusionContext) -> list[Tensor]:
    """The x0-predictions of the last steps of one picture's chain."""
    z, predictions = controls["latent"], []
    steps = len(own.sampler.schedule)
    for i in range(steps):
        embeddings = {name: (base + controls[name])[:, i] for name, base in context.embeddings.items()}
        if 0 <= i - own.blend_from < float(context.background_blend_steps) * steps - 1e-4:
            z = context.latent_mask * z + (1 - context.latent_mask) * context.original_trajectory[:, i]
        maps = None
        if float(context.cross_replace_steps) > i / steps:
            injected = {layer: m[:, i] for layer, m in context.attention_maps.items() if i < m.shape[1]}
            maps = AttentionControl(injected, torch.ones(1, dtype=torch.bool, device=z.device))
        eps = own.sampler.predict(own.networks, z, embeddings, i, maps)
        z, x0 = own.sampler.advance(z, eps, torch.zeros_like(z), i)
        predictions.append(x0)
    return predictions[-own.last :]


def render_latent(own: PlainModel, latent: Tensor) -> Scene:
    """One x0-prediction, decoded."""
    image = own.networks.decode(latent)
    return Scene(image, latent, image.unsqueeze(1))


def loss_and_gradient(
    own: PlainModel,
    controls: Controls,
    context: DiffusionContext,
    objective: Objective,
    augment: Augment,
    k: int,
    classifiers: int,
) -> tuple[float, Controls]:
    """The loss of step k, by the weighted mean of the last x0-predictions, and its gradient; classifiers: how many have
    crops of their own."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in controls.items()}
    latents = chain(own, leaves, context)
    total = torch.zeros((), device=latents[-1].device)
    for i, latent in enumerate(latents):
        scene = render_latent(own, latent)
        with torch.no_grad():
            evaluate(objective, scene)  # by which the best step is chosen
        for _ in range(classifiers):
            views = augment(scene, k)
        total = total + (i + 1) / sum(range(len(latents) + 1)) * evaluate(objective, views).total.sum()
    total.backward()
    return float(total.detach()), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def optimize(
    own: PlainModel, controls: Controls, context: DiffusionContext, objective: Objective, augment: Augment,
    rates: Mapping[str, float], steps: int, classifiers: int,
) -> Controls:  # fmt: skip
    """Adam for so many steps; z_T keeps its length."""
    values = {name: value.detach().clone() for name, value in controls.items()}
    adam = torch.optim.Adam([{"params": [value], "lr": rates[name]} for name, value in values.items()])
    latent_norm = controls["latent"].norm()
    for k in range(steps):
        _, gradients = loss_and_gradient(own, values, context, objective, augment, k, classifiers)
        for name, value in values.items():
            value.grad = gradients[name]
        adam.step()
        values["latent"].mul_(latent_norm / values["latent"].norm())
    return values


# --- prompts -------------------------------------------------------------------------------------------------


def single_image_scenes(
    prompts: PromptDiffusion, controls: Controls, context: PromptTuningContext
) -> Sequence[Callable[[], Scene]]:
    """The pictures of one prompt, each as a scene of its own that is drawn when it is asked for."""

    def drawn(j: int) -> Scene:
        course = {name: values[j : j + 1] for name, values in context.step_inputs.items()}
        return prompts(controls, replace(context, step_inputs=course))[-1]

    return [partial(drawn, j) for j in range(len(context.step_inputs["latent"]))]


def prompt_loss(scenes: Sequence[Callable[[], Scene]], objective: Objective) -> float:
    """The mean loss of pictures, drawn one after the other; with gradients, these are added up on the leaves."""
    values: list[Any] = []
    for scene in scenes:
        total = evaluate(objective, scene()).total.mean() / len(scenes)
        if torch.is_grad_enabled():
            total.backward()
        values.append(total.detach())
    return float(torch.stack(values).sum())
