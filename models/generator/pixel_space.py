"""Images whose pixels are optimized: the baselines that show what a generator adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.no_generator import NoGenerator
from classifier_lens.models.generator.prompt_diffusion import without_free_tokens
from classifier_lens.models.generator.prompt_tuning import FREE_TOKENS
from classifier_lens.models.generator.single_image import SingleImageGenerator
from classifier_lens.models.seeded_noise import derive_seed, gray_noise
from classifier_lens.runner.configuration.value_ranges import NonNegative
from classifier_lens.runner.types import (
    Controls,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Scene,
)

# The initial image of a problem without one: from the problem and the image that is generated of its prompt, (3, h, w)
# in [0, 1].
ImageInitialization = Callable[[Problem, Float[Tensor, "3 h w"]], Float[Tensor, "3 h w"]]


def init_from_generated(problem: Problem, generated: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """The image generated of the prompt."""
    return generated


def init_from_noise(problem: Problem, generated: Float[Tensor, "3 h w"], std: NonNegative) -> Float[Tensor, "3 h w"]:
    """Gray with Gaussian noise of the problem's seed, standard deviation `std` in [0, 1] units."""
    return gray_noise(generated.shape, std, problem.seed).to(generated)


def init_from_prompt(problem: Problem, generated: Float[Tensor, "3 h w"], std: NonNegative) -> Float[Tensor, "3 h w"]:
    """The image generated of the prompt; noise, see `init_from_noise`, where the prompt has free tokens."""
    return init_from_noise(problem, generated, std) if FREE_TOKENS.search(problem.edit.source) else generated


def init_from_example(problem: Problem, generated: Float[Tensor, "3 h w"], std: NonNegative) -> Float[Tensor, "3 h w"]:
    """The problem's top example; noise, see `init_from_noise`, where it has none."""
    return (
        init_from_noise(problem, generated, std)
        if problem.load_top_example is None
        else problem.load_top_example().to(generated)
    )


def shift_images(images: Float[Tensor, "b 3 h w"], shifts: Int[Tensor, "b 2"]) -> Float[Tensor, "b 3 h w"]:
    """Each image shifted by its rows and columns, cyclically."""
    shifted = [image.roll(tuple(shift), dims=(1, 2)) for image, shift in zip(images, shifts.tolist(), strict=True)]
    return torch.stack(shifted)


@dataclass(frozen=True)
class PixelContext:
    """prompts: that the initial images were generated with, "" for none; None where all are the problems' own; seeds:
    per problem; shifts: rows and columns that each image is shifted by before the classifier sees it, None for none."""

    prompts: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = ()
    shifts: Int[Tensor, "b 2"] | None = None


class PixelGenerator(SingleImageGenerator[PixelContext]):
    """Images as the only control, `pixels`, "b 3 h w"; editable region and distances are those of the generator.

    initialization: of problems without an image; max_jitter: largest shift in pixels, in both directions, sampled for
    every step; 0 for none."""

    def __init__(
        self, generator: LatentDiffusion | NoGenerator, initialization: ImageInitialization, max_jitter: int
    ) -> None:
        self.generator, self.initialization, self.max_jitter = generator, initialization, max_jitter

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check([without_free_tokens(problem) for problem in problems])

    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization[PixelContext]:
        """Start from the original images, without replacing words."""
        start = self.generator.initialize(
            [without_free_tokens(problem) for problem in problems], prompt_to_prompt, precomputed
        )
        original, latents = start.reference.original.clone(), start.reference.original_latent.clone()
        prompts = [problem.edit.target if self.generator.can_generate else "" for problem in problems]
        for i, problem in enumerate(problems):
            if problem.load is None:
                generated = original[i]
                image = self.initialization(problem, generated)
                if image is not generated:
                    original[i], latents[i : i + 1], prompts[i] = image, self._encode(image), ""
        return Initialization(
            {"pixels": original.clone()},
            PixelContext(tuple(prompts), tuple(problem.seed for problem in problems)),
            replace(start.reference, original=original, original_latent=latents),
            start.candidates[:1],
            start.warnings,
            start.precomputed,
        )

    @torch.no_grad()
    def _encode(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "1 c y x"]:
        return self.generator.encode(image[None])

    def step_context(self, context: PixelContext, k: int) -> PixelContext:
        """The constants of step k: the context itself without jitter, else shifts from each problem's seed and k."""
        if not self.max_jitter:
            return context
        generators = [torch.Generator().manual_seed(derive_seed(seed, "jitter", k)) for seed in context.seeds]
        shifts = [torch.randint(-self.max_jitter, self.max_jitter + 1, (2,), generator=g) for g in generators]
        return replace(context, shifts=torch.stack(shifts))

    def __call__(self, controls: Controls, context: PixelContext) -> list[Scene]:
        """The images clipped to [0, 1], with the gradient of the identity; the views are shifted."""
        pixels = controls["pixels"]
        image = pixels + (pixels.clamp(0, 1) - pixels).detach()
        shifted = image if context.shifts is None else shift_images(image, context.shifts)
        return [Scene(image, self.generator.encode(image), shifted.unsqueeze(1))]

    def decode_prompts(self, controls: Controls, context: PixelContext) -> list[str] | None:
        return None if context.prompts is None else list(context.prompts)
