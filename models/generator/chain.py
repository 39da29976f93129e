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
from classifier_lens.models.generator.recomputation import recomputed
from classifier_lens.models.generator.samplers import Course, Sampler
from classifier_lens.models.generator.single_image import SinglePicture
from classifier_lens.runner.types import Anchor, Controls, Scene, UserError

RECOMPUTE = ("none", "step", "block", "auto")


class Chain(SinglePicture):
    """Frozen networks and their sampler; calling it renders controls.

    last: the last x0-predictions that are decoded; recompute: one of `RECOMPUTE`; backward: the last steps that
    gradients pass, None for all; blend_from: the first latent that blending holds, 0 for z_T, i for the output of step
    i - 1.
    """

    def __init__(
        self, networks: Networks, sampler: Sampler, resolution: int, last: int, recompute: str, backward: int | None,
        blend_from: int,
    ) -> None:  # fmt: skip
        if recompute not in RECOMPUTE:
            raise UserError(f"generator.recompute={recompute}: allowed are {', '.join(RECOMPUTE)}")
        if resolution % networks.shrink:
            raise UserError(f"generator.resolution={resolution}: allowed are multiples of {networks.shrink}")
        if backward is not None and not 1 <= backward <= len(sampler.schedule):
            raise UserError(f"generator.backward={backward}: allowed are 1 … {len(sampler.schedule)}, or null for all")
        if not 0 <= blend_from <= len(sampler.schedule):
            raise UserError(f"generator.blend_from={blend_from}: allowed are 0 … {len(sampler.schedule)}")
        self.networks, self.sampler, self.device = networks, sampler, networks.device
        self.latent_side, self.resolution, self.digest = resolution // networks.shrink, resolution, networks.digest
        self.recipe = repr((networks.digest, resolution, sampler.setting))
        self.last, self.backward, self.blend_from = last, backward, blend_from
        self.recompute_as(recompute)

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

    def recompute_as(self, mode: str) -> None:
        """Choose what the backward pass computes again, one of `RECOMPUTE`; the gradient is the same. `auto` is `step`
        until memory is looked at (`runner.optimization.memory_planning`)."""
        self.recompute = mode
        if mode == "block":
            self.networks.unet.enable_gradient_checkpointing()
        else:
            self.networks.unet.disable_gradient_checkpointing()

    def predict(
        self, z: Tensor, embeddings: Mapping[str, Tensor], i: int, anchor: Anchor | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> Float[Tensor, "b c y x"]:  # fmt: skip
        """The prediction of step i, with the anchor's injected maps; embeddings "b l d" by name."""
        maps = None
        if record is not None:
            maps = cross_attention.MapControl(record=record, rows=len(z))
        elif anchor is not None:
            maps = self.injection([anchor], i)
        return self.sampler.predict(self.networks, z, embeddings, i, maps)

    def injection(self, anchors: Sequence[Anchor], i: int) -> cross_attention.MapControl | None:
        """The maps that the samples of anchors, one anchor's behind the other's, are given in step i; None for none."""
        active = joined([anchor.inject for anchor in anchors]) > i / len(self)
        if not bool(active.any()):
            return None
        layers = [layer for layer, maps in anchors[0].maps.items() if i < maps.shape[1]]
        return cross_attention.MapControl(
            {layer: joined([a.maps[layer][:, i] for a in anchors]) for layer in layers}, active
        )

    def blends(self, anchor: Anchor, i: int) -> Bool[Tensor, " b"]:
        """Which samples' input of step i is held outside the mask: the shares of the chain count from the first latent
        that is held."""
        since = i - self.blend_from
        return (anchor.blend > since / len(self)) & (since >= 0)

    def blended(self, z: Tensor, i: int, anchor: Anchor | None) -> Float[Tensor, "b c y x"]:
        """The input of step i: what lies outside the mask is set to the template where the anchor says so."""
        if anchor is None or not bool((held := self.blends(anchor, i)).any()):
            return z
        free = torch.where(held[:, None, None, None], anchor.latent_mask, torch.ones_like(anchor.latent_mask))
        return free * z + (1 - free) * anchor.templates[:, i]

    def step(
        self, z: Tensor, embeddings: Mapping[str, Tensor], noise: Tensor, i: int, anchor: Anchor | None = None,
        record: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Sampler step i -> (next latent, x0-prediction), with the anchor's blending."""
        z = self.blended(z, i, anchor)
        return self.sampler.advance(z, self.predict(z, embeddings, i, anchor, record), noise, i)

    def _step_of(
        self, names: Sequence[str], noise: Tensor, i: int, anchor: Anchor | None, z: Tensor, *parts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same of embeddings in parts that are added up: a part of every name, and another one of every name."""
        now = {name: reduce(add, parts[j :: len(names)]) for j, name in enumerate(names)}
        return self.step(z, now, noise, i, anchor)

    def chain(
        self, latent: Float[Tensor, "b c y x"], embeddings: Mapping[str, Tensor], noise: Float[Tensor, "b t c y x"],
        anchor: Anchor | None = None, offsets: Mapping[str, Tensor] | None = None,
    ) -> list[Float[Tensor, "b c y x"]]:  # fmt: skip
        """The x0-predictions of all steps; embeddings "b t l d" by name, and what is added to them. Gradients pass the
        last `backward` steps."""
        parts = [*embeddings.values(), *(offsets[name] for name in embeddings if offsets is not None)]
        # Not sliced anew for every step: each slice would have a gradient of the whole's size. Nor added up for all
        # steps at once, which would be kept beside them.
        unbound = [part.unbind(1) for part in parts]
        z, predictions, graph = latent, [], torch.is_grad_enabled()
        for i in range(len(self)):
            step = partial(self._step_of, tuple(embeddings), noise[:, i], i, anchor)
            now = [part[i] for part in unbound]
            with torch.set_grad_enabled(graph and i >= len(self) - (self.backward or len(self))):
                again = self.recompute in ("step", "auto") and torch.is_grad_enabled()
                z, x0 = recomputed(step, z, *now) if again else step(z, *now)
            predictions.append(x0)
        return predictions

    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        """Scenes of the last `last` x0-predictions; the last one is the picture that counts."""
        latents = self.chain(controls["latent"], anchor.base, anchor.noise, anchor, controls)[-self.last :]
        images = self.networks.decode(torch.cat(latents)).chunk(len(latents))
        left = reversed(range(len(latents)))
        return [Scene(image, z, image.unsqueeze(1), n) for image, z, n in zip(images, latents, left, strict=True)]

    def base(self, text: Float[Tensor, "b l d"], course: Course) -> dict[str, Float[Tensor, "b t l d"]]:
        """The embeddings of every step by name: the text, and what the course brings."""
        given = {"text": text[:, None].expand(-1, len(self), -1, -1), **course}
        return {name: given[name] for name in self.sampler.embeddings}

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        """Pictures of prompts, without any edit; each start latent is drawn from its own seed."""
        course = self.sampler.draw(self.networks, seeds, self.latent_side)
        embeddings = self.base(self.networks.embed(prompts), course)
        return self.networks.decode(self.chain(course["latent"], embeddings, course["noise"])[-1])


def joined(rows: Sequence[Tensor]) -> Tensor:
    """Rows behind each other; those of one tensor are not copied."""
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))
