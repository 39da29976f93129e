"""Several images as one result, each from its own seed: for baselines whose result is one image where the method's is a
distribution of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator.single_image import SingleImageGenerator
from classifier_lens.models.seeded_noise import derive_seed
from classifier_lens.runner.protocols import Generator
from classifier_lens.runner.types import (
    Context,
    Controls,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Reference,
    Scene,
)


class MultiImageGenerator(SingleImageGenerator[Context]):
    """`num_images` images per problem by a generator of single images, each from its own seed: the views of a scene.

    Controls are the generator's, "b n …"; the context is the generator's, of all images, those of a problem next to
    each other; the reference is that of each problem's first image."""

    def __init__(self, generator: Generator[Context], num_images: int) -> None:
        self.generator, self.num_images, self.images_in_graph = generator, num_images, num_images

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check(problems)

    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization[Context]:
        images = [replace(p, seed=derive_seed(p.seed, "several", j)) for p in problems for j in range(self.num_images)]
        start = self.generator.initialize(images, prompt_to_prompt, precomputed)
        assert len(start.candidates) == 1, "the images of one problem would take different candidates"
        reference = Reference(**{name: values[:: self.num_images] for name, values in vars(start.reference).items()})
        controls, warnings = self._by_problem(start.controls), start.warnings[:: self.num_images]
        return replace(start, controls=controls, reference=reference, warnings=warnings)

    def _by_problem(self, controls: Controls) -> Controls:
        """Controls of all images as "b n …"."""
        return {name: values.unflatten(0, (-1, self.num_images)) for name, values in controls.items()}

    def step_context(self, context: Context, k: int) -> Context:
        return self.generator.step_context(context, k)

    def __call__(self, controls: Controls, context: Context) -> list[Scene]:
        """Scenes whose views are the images of a problem; `image` is the first one."""
        scenes = self.generator({name: values.flatten(0, 1) for name, values in controls.items()}, context)
        tensors = [
            [values.unflatten(0, (-1, self.num_images)) for values in (scene.image, scene.latent, scene.views[:, 0])]
            for scene in scenes
        ]
        return [Scene(images[:, 0], latents[:, 0], views) for images, latents, views in tensors]

    @torch.no_grad()
    def images(self, controls: Controls, context: Context) -> Float[Tensor, "b n 3 h w"]:
        return self(controls, context)[-1].views

    def decode_prompts(self, controls: Controls, context: Context) -> list[str] | None:
        prompts = self.generator.decode_prompts({name: c.flatten(0, 1) for name, c in controls.items()}, context)
        return None if prompts is None else prompts[:: self.num_images]
