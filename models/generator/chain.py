"""The chain of a diffusion model, from a start latent and embeddings to images (DiG-IN, Section 3, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from classifier_lens.models.generator.cross_attention import AttentionControl
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.recomputation import checkpointed
from classifier_lens.models.generator.samplers import Sampler, SamplerInputs
from classifier_lens.models.generator.single_image import SingleImageGenerator
from classifier_lens.runner.configuration.value_ranges import ChainIndex, ChainSteps, OneOf, Pixels
from classifier_lens.runner.types import Controls, Scene, UserError

GRADIENT_CHECKPOINTING_MODES = ("none", "step", "block", "auto")


@dataclass(frozen=True)
class DiffusionContext:
    """The constants of a batch's chain.

    embeddings: C_t and N_t of each sampler step, `text` and `null`; controls of these names are added to them;
    variance_noise: what each sampler step adds (0 with DDIM); latent_mask: editable region of latents, in [0, 1];
    original_trajectory: the original's latents before each step; attention_maps: cross-attention maps to inject, layer
    -> (b, t', heads, pixels, l), t' the recorded steps; cross_replace_steps, background_blend_steps: per sample, the
    share of the chain in which maps are injected, and in which the preserved region is set to the trajectory."""

    embeddings: Mapping[str, Float[Tensor, "b t l d"]]
    variance_noise: Float[Tensor, "b t c y x"]
    latent_mask: Float[Tensor, "b 1 y x"]
    original_trajectory: Float[Tensor, "b t c y x"]
    attention_maps: Mapping[str, Tensor]
    cross_replace_steps: Float[Tensor, " b"]
    background_blend_steps: Float[Tensor, " b"]


@dataclass(frozen=True, kw_only=True)
class ChainSettings:
    """resolution: side of the images in pixels; last_x0_predictions: how many of the last x0-predictions are decoded;
    gradient_checkpointing: what the backward pass recomputes; backprop_steps: how many of the last steps gradients pass
    through, None for all; background_blend_start: the first latent that is blended, 0 for z_T, i for the output of step
    i - 1."""

    resolution: Pixels
    last_x0_predictions: ChainSteps
    gradient_checkpointing: Annotated[str, OneOf(GRADIENT_CHECKPOINTING_MODES)]
    backprop_steps: ChainSteps | None
    background_blend_start: ChainIndex


class Chain(SingleImageGenerator[DiffusionContext]):
    """Frozen networks and their sampler; a call renders controls."""

    def __init__(self, networks: Networks, sampler: Sampler, settings: ChainSettings) -> None:
        _check_settings(settings, networks, sampler)
        self.networks, self.sampler, self.device = networks, sampler, networks.device
        self.resolution, self.latent_size = settings.resolution, settings.resolution // networks.vae_scale_factor
        self.digest = networks.digest
        self.fingerprint = repr((networks.digest, settings.resolution, sampler.fingerprint))
        self.last_x0_predictions, self.backprop_steps = settings.last_x0_predictions, settings.backprop_steps
        self.background_blend_start = settings.background_blend_start
        self.set_gradient_checkpointing(settings.gradient_checkpointing)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the networks."""
        return self.networks.dtype

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c y x"]:
        """The scaled latents of images in [0, 1]."""
        return self.networks.encode(images)

    def __len__(self) -> int:
        """T, the number of sampler steps."""
        return len(self.sampler.schedule)

    def set_gradient_checkpointing(self, mode: str) -> None:
        """Set what the backward pass recomputes, one of `GRADIENT_CHECKPOINTING_MODES`; the gradient is the same.
        `auto` works as `step` until `runner.optimization.memory_planning` has chosen a mode."""
        self.gradient_checkpointing = mode
        if mode == "block":
            self.networks.unet.enable_gradient_checkpointing()
        else:
            self.networks.unet.disable_gradient_checkpointing()

    def predict(
        self, z: Tensor, embeddings: Mapping[str, Tensor], i: int, context: DiffusionContext | None = None,
        recorded_maps: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "b c y x"]:  # fmt: skip
        """The network's prediction at step i, with the context's attention maps injected; embeddings: "b l d" by name;
        recorded_maps: filled with the step's attention maps."""
        maps = None
        if recorded_maps is not None:
            maps = AttentionControl(recorded_maps=recorded_maps, num_recorded=len(z))
        elif context is not None:
            maps = self.attention_control([context], i)
        return self.sampler.predict(self.networks, z, embeddings, i, maps)

    def attention_control(self, contexts: Sequence[DiffusionContext], i: int) -> AttentionControl | None:
        """The maps that are injected at step i into the samples of all contexts, one context after the other; None for
        no maps."""
        is_injected = concatenate([context.cross_replace_steps for context in contexts]) > i / len(self)
        if not bool(is_injected.any()):
            return None
        layers = [layer for layer, maps in contexts[0].attention_maps.items() if i < maps.shape[1]]
        return AttentionControl(
            {layer: concatenate([context.attention_maps[layer][:, i] for context in contexts]) for layer in layers},
            is_injected,
        )

    def is_blended(self, context: DiffusionContext, i: int) -> Bool[Tensor, " b"]:
        """For which samples the preserved region of step i's input is set to the original's. The shares of the chain
        count from the first latent that can be."""
        position = i - self.background_blend_start
        return (context.background_blend_steps > position / len(self)) & (position >= 0)

    def blend_background(self, z: Tensor, i: int, context: DiffusionContext | None) -> Float[Tensor, "b c y x"]:
        """The input of step i, its preserved region set to the original's latents where `is_blended`."""
        if context is None or not bool((blended := self.is_blended(context, i)).any()):
            return z
        mask = torch.where(blended[:, None, None, None], context.latent_mask, torch.ones_like(context.latent_mask))
        return mask * z + (1 - mask) * context.original_trajectory[:, i]

    def step(
        self, z: Tensor, embeddings: Mapping[str, Tensor], noise: Tensor, i: int,
        context: DiffusionContext | None = None, recorded_maps: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Sampler step i with blending -> (next latent, x0-prediction). recorded_maps: see `predict`."""
        z = self.blend_background(z, i, context)
        return self.sampler.advance(z, self.predict(z, embeddings, i, context, recorded_maps), noise, i)

    def _step_with_sums(
        self,
        names: Sequence[str],
        noise: Tensor,
        i: int,
        context: DiffusionContext | None,
        z: Tensor,
        *summands: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`step` with embeddings given as summands: one of every name, then the next one of every name."""
        embeddings = {name: reduce(add, summands[j :: len(names)]) for j, name in enumerate(names)}
        return self.step(z, embeddings, noise, i, context)

    def denoise(
        self, latent: Float[Tensor, "b c y x"], embeddings: Mapping[str, Tensor], noise: Float[Tensor, "b t c y x"],
        context: DiffusionContext | None = None, offsets: Mapping[str, Tensor] | None = None,
    ) -> list[Float[Tensor, "b c y x"]]:  # fmt: skip
        """The x0-predictions of all steps. embeddings: "b t l d" by name; offsets: of the same names, added to them.
        Gradients pass through the last `backprop_steps` steps."""
        summands = [*embeddings.values(), *(offsets[name] for name in embeddings if offsets is not None)]
        # Unbound once: a slice at every step would have a gradient of the whole tensor's size each. The summands are
        # added step by step: their sum for all steps would be held in memory beside them.
        by_step = [summand.unbind(1) for summand in summands]
        z, predictions, needs_graph = latent, [], torch.is_grad_enabled()
        for i in range(len(self)):
            step = partial(self._step_with_sums, tuple(embeddings), noise[:, i], i, context)
            inputs = [values[i] for values in by_step]
            with torch.set_grad_enabled(needs_graph and i >= len(self) - (self.backprop_steps or len(self))):
                recompute = self.gradient_checkpointing in ("step", "auto") and torch.is_grad_enabled()
                z, x0 = checkpointed(step, z, *inputs) if recompute else step(z, *inputs)
            predictions.append(x0)
        return predictions

    def __call__(self, controls: Controls, context: DiffusionContext) -> list[Scene]:
        """Scenes of the last `last_x0_predictions` x0-predictions; the last one is the image of the result."""
        latents = self.denoise(controls["latent"], context.embeddings, context.variance_noise, context, controls)[
            -self.last_x0_predictions :
        ]
        images = self.networks.decode(torch.cat(latents)).chunk(len(latents))
        steps_left = reversed(range(len(latents)))
        return [Scene(image, z, image.unsqueeze(1), n) for image, z, n in zip(images, latents, steps_left, strict=True)]

    def step_embeddings(
        self, text: Float[Tensor, "b l d"], inputs: SamplerInputs
    ) -> dict[str, Float[Tensor, "b t l d"]]:
        """The embeddings of every step by name: the text's, and those among the sampler's inputs."""
        embeddings = {"text": text[:, None].expand(-1, len(self), -1, -1), **inputs}
        return {name: embeddings[name] for name in self.sampler.embedding_names}

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Images of prompts without any edit; each start latent is sampled from its own seed."""
        inputs = self.sampler.sample_inputs(self.networks, seeds, self.latent_size)
        embeddings = self.step_embeddings(self.networks.embed(prompts), inputs)
        return self.networks.decode(self.denoise(inputs["latent"], embeddings, inputs["noise"])[-1])


def _check_settings(settings: ChainSettings, networks: Networks, sampler: Sampler) -> None:
    """Raise UserError for values that the networks or the number of sampler steps do not allow."""
    factor, steps = networks.vae_scale_factor, len(sampler.schedule)
    if settings.gradient_checkpointing not in GRADIENT_CHECKPOINTING_MODES:
        raise UserError(
            f"generator.gradient_checkpointing={settings.gradient_checkpointing}: allowed are "
            f"{', '.join(GRADIENT_CHECKPOINTING_MODES)}"
        )
    if settings.resolution % factor:
        raise UserError(f"generator.resolution={settings.resolution}: allowed are multiples of {factor}")
    if settings.backprop_steps is not None and not 1 <= settings.backprop_steps <= steps:
        raise UserError(f"generator.backprop_steps={settings.backprop_steps}: allowed are 1 … {steps}, or null for all")
    if not 0 <= settings.background_blend_start <= steps:
        raise UserError(f"generator.background_blend_start={settings.background_blend_start}: allowed are 0 … {steps}")


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """The rows of all tensors; a single tensor is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
