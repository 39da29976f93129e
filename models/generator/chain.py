"""A diffusion model's chain from a start latent and embeddings to pictures (DiG-IN, Section 3, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from operator import add

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from classifier_lens.models.generator import cross_attention
from classifier_lens.models.generator.pipeline.networks import Networks
from classifier_lens.models.generator.recomputation import checkpointed
from classifier_lens.models.generator.samplers import Sampler, SamplerInputs
from classifier_lens.models.generator.single_image import SingleImageGenerator
from classifier_lens.runner.types import Controls, EditContext, Scene, UserError

GRADIENT_CHECKPOINTING_MODES = ("none", "step", "block", "auto")


class Chain(SingleImageGenerator):
    """Frozen networks and their sampler; calling it renders controls.

    last_x0_predictions: the last x0-predictions that are decoded; gradient_checkpointing: one of
    `GRADIENT_CHECKPOINTING_MODES`; backprop_steps: the last steps that gradients pass, None for all;
    background_blend_start: the first latent that blending holds, 0 for z_T, i for the output of step i - 1."""

    def __init__(
        self,
        networks: Networks,
        sampler: Sampler,
        resolution: int,
        last_x0_predictions: int,
        gradient_checkpointing: str,
        backprop_steps: int | None,
        background_blend_start: int,
    ) -> None:
        if gradient_checkpointing not in GRADIENT_CHECKPOINTING_MODES:
            raise UserError(
                f"generator.gradient_checkpointing={gradient_checkpointing}: allowed are "
                f"{', '.join(GRADIENT_CHECKPOINTING_MODES)}"
            )
        if resolution % networks.vae_scale_factor:
            raise UserError(f"generator.resolution={resolution}: allowed are multiples of {networks.vae_scale_factor}")
        if backprop_steps is not None and not 1 <= backprop_steps <= len(sampler.schedule):
            raise UserError(
                f"generator.backprop_steps={backprop_steps}: allowed are 1 … {len(sampler.schedule)}, or null for all"
            )
        if not 0 <= background_blend_start <= len(sampler.schedule):
            raise UserError(
                f"generator.background_blend_start={background_blend_start}: allowed are 0 … {len(sampler.schedule)}"
            )
        self.networks, self.sampler, self.device = networks, sampler, networks.device
        self.latent_size, self.resolution, self.digest = (
            resolution // networks.vae_scale_factor,
            resolution,
            networks.digest,
        )
        self.fingerprint = repr((networks.digest, resolution, sampler.fingerprint))
        self.last_x0_predictions, self.backprop_steps, self.background_blend_start = (
            last_x0_predictions,
            backprop_steps,
            background_blend_start,
        )
        self.set_gradient_checkpointing(gradient_checkpointing)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the networks."""
        return self.networks.dtype

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c y x"]:
        """The scaled latents of images in [0, 1]."""
        return self.networks.encode(images)

    def __len__(self) -> int:
        """T, the sampler's steps."""
        return len(self.sampler.schedule)

    def set_gradient_checkpointing(self, mode: str) -> None:
        """Choose what the backward pass computes again, one of `GRADIENT_CHECKPOINTING_MODES`; the gradient is the
        same. `auto` is `step` until memory is looked at (`runner.optimization.memory_planning`)."""
        self.gradient_checkpointing = mode
        if mode == "block":
            self.networks.unet.enable_gradient_checkpointing()
        else:
            self.networks.unet.disable_gradient_checkpointing()

    def predict(
        self, z: Tensor, embeddings: Mapping[str, Tensor], i: int, anchor: EditContext | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "b c y x"]:  # fmt: skip
        """The prediction of step i, with the anchor's injected maps; embeddings "b l d" by name."""
        maps = None
        if record is not None:
            maps = cross_attention.AttentionControl(recorded_maps=record, num_recorded=len(z))
        elif anchor is not None:
            maps = self.attention_control([anchor], i)
        return self.sampler.predict(self.networks, z, embeddings, i, maps)

    def attention_control(self, anchors: Sequence[EditContext], i: int) -> cross_attention.AttentionControl | None:
        """The maps that the samples of anchors, one anchor's behind the other's, are given in step i; None for none."""
        active = concatenate([anchor.cross_replace_steps for anchor in anchors]) > i / len(self)
        if not bool(active.any()):
            return None
        layers = [layer for layer, maps in anchors[0].attention_maps.items() if i < maps.shape[1]]
        return cross_attention.AttentionControl(
            {layer: concatenate([a.attention_maps[layer][:, i] for a in anchors]) for layer in layers}, active
        )

    def is_blended(self, anchor: EditContext, i: int) -> Bool[Tensor, " b"]:
        """Which samples' input of step i is held outside the mask: the shares of the chain count from the first latent
        that is held."""
        since = i - self.background_blend_start
        return (anchor.background_blend_steps > since / len(self)) & (since >= 0)

    def blend_background(self, z: Tensor, i: int, anchor: EditContext | None) -> Float[Tensor, "b c y x"]:
        """The input of step i: what lies outside the mask is set to the template where the anchor says so."""
        if anchor is None or not bool((held := self.is_blended(anchor, i)).any()):
            return z
        free = torch.where(held[:, None, None, None], anchor.latent_mask, torch.ones_like(anchor.latent_mask))
        return free * z + (1 - free) * anchor.original_trajectory[:, i]

    def step(
        self, z: Tensor, embeddings: Mapping[str, Tensor], noise: Tensor, i: int, anchor: EditContext | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Sampler step i -> (next latent, x0-prediction), with the anchor's blending."""
        z = self.blend_background(z, i, anchor)
        return self.sampler.advance(z, self.predict(z, embeddings, i, anchor, record), noise, i)

    def _step_of(
        self, names: Sequence[str], noise: Tensor, i: int, anchor: EditContext | None, z: Tensor, *parts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same of embeddings in parts that are added up: a part of every name, and another one of every name."""
        now = {name: reduce(add, parts[j :: len(names)]) for j, name in enumerate(names)}
        return self.step(z, now, noise, i, anchor)

    def denoise(
        self, latent: Float[Tensor, "b c y x"], embeddings: Mapping[str, Tensor], noise: Float[Tensor, "b t c y x"],
        anchor: EditContext | None = None, offsets: Mapping[str, Tensor] | None = None,
    ) -> list[Float[Tensor, "b c y x"]]:  # fmt: skip
        """The x0-predictions of all steps; embeddings "b t l d" by name, and what is added to them. Gradients pass the
        last `backprop_steps` steps."""
        parts = [*embeddings.values(), *(offsets[name] for name in embeddings if offsets is not None)]
        # Not sliced anew for every step: each slice would have a gradient of the whole's size. Nor added up for all
        # steps at once, which would be kept beside them.
        unbound = [part.unbind(1) for part in parts]
        z, predictions, graph = latent, [], torch.is_grad_enabled()
        for i in range(len(self)):
            step = partial(self._step_of, tuple(embeddings), noise[:, i], i, anchor)
            now = [part[i] for part in unbound]
            with torch.set_grad_enabled(graph and i >= len(self) - (self.backprop_steps or len(self))):
                again = self.gradient_checkpointing in ("step", "auto") and torch.is_grad_enabled()
                z, x0 = checkpointed(step, z, *now) if again else step(z, *now)
            predictions.append(x0)
        return predictions

    def __call__(self, controls: Controls, anchor: EditContext) -> list[Scene]:
        """Scenes of the last `last_x0_predictions` x0-predictions; the last one is the picture that counts."""
        latents = self.denoise(controls["latent"], anchor.embeddings, anchor.variance_noise, anchor, controls)[
            -self.last_x0_predictions :
        ]
        images = self.networks.decode(torch.cat(latents)).chunk(len(latents))
        left = reversed(range(len(latents)))
        return [Scene(image, z, image.unsqueeze(1), n) for image, z, n in zip(images, latents, left, strict=True)]

    def step_embeddings(
        self, text: Float[Tensor, "b l d"], course: SamplerInputs
    ) -> dict[str, Float[Tensor, "b t l d"]]:
        """The embeddings of every step by name: the text, and what the course brings."""
        given = {"text": text[:, None].expand(-1, len(self), -1, -1), **course}
        return {name: given[name] for name in self.sampler.embedding_names}

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Pictures of prompts, without any edit; each start latent is drawn from its own seed."""
        course = self.sampler.sample_inputs(self.networks, seeds, self.latent_size)
        embeddings = self.step_embeddings(self.networks.embed(prompts), course)
        return self.networks.decode(self.denoise(course["latent"], embeddings, course["noise"])[-1])


def concatenate(rows: Sequence[Tensor]) -> Tensor:
    """Rows behind each other; those of one tensor are not copied."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))
