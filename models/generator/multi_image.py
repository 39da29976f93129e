"""Several pictures as one answer, each from a start of its own: for baselines whose answer is one picture where the
method's is a distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator.single_image import SingleImageGenerator
from classifier_lens.models.seeded_noise import derive_seed
from classifier_lens.runner.protocols import Generator
from classifier_lens.runner.types import (
    Controls,
    EditContext,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Scene,
)


@dataclass(frozen=True, kw_only=True)
class MultiImageContext(EditContext):
    """per_image: the constants of all pictures, those of a problem next to each other. What stands beside it is that of
    each problem's first picture; latent_norm is of all of them, "b n"."""

    per_image: EditContext


class MultiImageGenerator(SingleImageGenerator):
    """`num_images` pictures per problem by a generator whose answer is one, each from a seed of its own: the views of a
    scene. Controls are the generator's, "b n …"."""

    def __init__(self, generator: Generator, num_images: int) -> None:
        self.generator, self.num_images, self.images_in_graph = generator, num_images, num_images

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check(problems)

    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization:
        every = [replace(p, seed=derive_seed(p.seed, "several", j)) for p in problems for j in range(self.num_images)]
        start = self.generator.initialize(every, prompt_to_prompt, precomputed)
        assert len(start.candidates) == 1, "images of one problem would take different candidates"
        return replace(
            start, controls=self._folded(start.controls), context=self._outer(start.context),
            warnings=start.warnings[:: self.num_images],
        )  # fmt: skip

    def _folded(self, controls: Controls) -> Controls:
        return {name: values.unflatten(0, (-1, self.num_images)) for name, values in controls.items()}

    def _outer(self, own: EditContext) -> EditContext:
        def first(values: Any) -> Any:
            if isinstance(values, Mapping):
                return {name: first(value) for name, value in values.items()}
            return values[:: self.num_images]

        shared = {field.name: first(getattr(own, field.name)) for field in fields(EditContext)}
        return MultiImageContext(
            **shared | {"latent_norm": own.latent_norm.unflatten(0, (-1, self.num_images))}, per_image=own
        )

    def step_context(self, context: EditContext, k: int) -> EditContext:
        assert isinstance(context, MultiImageContext)
        own = self.generator.step_context(context.per_image, k)
        return context if own is context.per_image else replace(context, per_image=own)

    def evaluation_context(self, context: EditContext) -> EditContext:
        return context

    def __call__(self, controls: Controls, context: EditContext) -> list[Scene]:
        """Scenes whose views are a problem's pictures; `image` is the first of them."""
        assert isinstance(context, MultiImageContext)
        scenes = self.generator({name: values.flatten(0, 1) for name, values in controls.items()}, context.per_image)
        folded = [[v.unflatten(0, (-1, self.num_images)) for v in (s.image, s.latent, s.views[:, 0])] for s in scenes]
        return [Scene(images[:, 0], latents[:, 0], views) for images, latents, views in folded]

    @torch.no_grad()
    def images(self, controls: Controls, context: EditContext) -> Float[Tensor, "b n 3 h w"]:
        return self(controls, context)[-1].views

    def decode_prompts(self, controls: Controls, context: EditContext) -> list[str] | None:
        assert isinstance(context, MultiImageContext)
        words = self.generator.decode_prompts(controls, context.per_image)
        return None if words is None else words[:: self.num_images]
