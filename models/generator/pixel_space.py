"""Pictures as what is optimised: the baselines that show what a generator adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.latent_prior import PromptedContext
from classifier_lens.models.generator.no_generator import NoGenerator
from classifier_lens.models.generator.prompt_diffusion import without_free_tokens
from classifier_lens.models.generator.prompt_tuning import FREE_TOKENS
from classifier_lens.models.generator.single_image import SingleImageGenerator
from classifier_lens.models.seeded_noise import derive_seed, gray_noise
from classifier_lens.runner.configuration.value_ranges import NonNegative
from classifier_lens.runner.types import (
    Controls,
    EditContext,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Scene,
)

# Where a picture begins that is not given: from the problem and the picture drawn of its words, (3, h, w) in [0, 1].
ImageInitialization = Callable[[Problem, Float[Tensor, "3 h w"]], Float[Tensor, "3 h w"]]


def init_from_generated(problem: Problem, drawn: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """The picture drawn of the prompt."""
    return drawn


def init_from_noise(problem: Problem, drawn: Float[Tensor, "3 h w"], std: NonNegative) -> Float[Tensor, "3 h w"]:
    """Grey with Gaussian noise of the problem's seed, standard deviation `std` in [0, 1] units."""
    return gray_noise(drawn.shape, std, problem.seed).to(drawn)


def init_from_prompt(problem: Problem, drawn: Float[Tensor, "3 h w"], std: NonNegative) -> Float[Tensor, "3 h w"]:
    """The picture drawn of the prompt; noise, see `init_from_noise`, where its tokens are free."""
    return init_from_noise(problem, drawn, std) if FREE_TOKENS.search(problem.edit.source) else drawn


def init_from_example(problem: Problem, drawn: Float[Tensor, "3 h w"], std: NonNegative) -> Float[Tensor, "3 h w"]:
    """The problem's example; noise, see `init_from_noise`, where it has none."""
    return (
        init_from_noise(problem, drawn, std)
        if problem.load_top_example is None
        else problem.load_top_example().to(drawn)
    )


def shift_images(images: Float[Tensor, "b 3 h w"], shifts: Int[Tensor, "b 2"]) -> Float[Tensor, "b 3 h w"]:
    """Each picture moved by its own rows and columns; what leaves it on one side comes in on the other."""
    moved = [image.roll(tuple(by), dims=(1, 2)) for image, by in zip(images, shifts.tolist(), strict=True)]
    return torch.stack(moved)


@dataclass(frozen=True, kw_only=True)
class PixelContext(PromptedContext):
    """What a batch of pictures needs besides. seeds: per problem; shifts: rows and columns by which a picture is moved
    before it is looked at."""

    seeds: tuple[int, ...]
    shifts: Int[Tensor, "b 2"]


class PixelGenerator(SingleImageGenerator):
    """The picture itself as the only control (`pixels`, "b 3 h w"); region and distances are the diffusion model's.

    initialization: where a picture begins that is not given; max_jitter: largest jitter in pixels, both ways, drawn
    anew for every step, 0 for none."""

    def __init__(
        self, generator: LatentDiffusion | NoGenerator, initialization: ImageInitialization, max_jitter: int
    ) -> None:
        self.generator, self.initialization, self.max_jitter = generator, initialization, max_jitter

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check([without_free_tokens(problem) for problem in problems])

    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization:
        """Start from the original pictures, without exchanging words."""
        start = self.generator.initialize(
            [without_free_tokens(problem) for problem in problems], prompt_to_prompt, precomputed
        )
        context = start.context
        original, encoded = context.original.clone(), context.original_latent.clone()
        prompts = self.generator.decode_prompts(start.controls, context) or [p.edit.target for p in problems]
        for i, problem in enumerate(problems):
            begun = original[i] if problem.load is not None else self.initialization(problem, drawn := original[i])
            if problem.load is None and begun is not drawn:
                original[i], encoded[i : i + 1] = begun, self._encoded(begun)
                prompts[i] = ""
        seeds = tuple(problem.seed for problem in problems)
        fields = vars(context) | {
            "original": original,
            "original_latent": encoded,
            "latent_norm": original.flatten(1).norm(dim=1),
        }
        context = PixelContext(
            **fields, prompts=tuple(prompts), seeds=seeds, shifts=torch.zeros(len(seeds), 2, dtype=torch.long)
        )
        return replace(start, controls={"pixels": original.clone()}, context=context, candidates=start.candidates[:1])

    @torch.no_grad()
    def _encoded(self, picture: Float[Tensor, "3 h w"]) -> Float[Tensor, "1 c y x"]:
        return self.generator.encode(picture[None])

    def step_context(self, context: EditContext, k: int) -> EditContext:
        """The constants of step k: the context itself without jitter, else shifts from each problem's seed and k."""
        if not self.max_jitter:
            return context
        assert isinstance(context, PixelContext)
        draws = [torch.Generator().manual_seed(derive_seed(seed, "jitter", k)) for seed in context.seeds]
        shifts = [torch.randint(-self.max_jitter, self.max_jitter + 1, (2,), generator=draw) for draw in draws]
        return replace(context, shifts=torch.stack(shifts))

    def __call__(self, controls: Controls, context: EditContext) -> list[Scene]:
        """The picture cut to [0, 1], which lets the gradient pass; what is looked at is moved as the context says."""
        pixels = controls["pixels"]
        image = pixels + (pixels.clamp(0, 1) - pixels).detach()
        moved = (
            shift_images(image, context.shifts) if isinstance(context, PixelContext) and context.shifts.any() else image
        )
        return [Scene(image, self.generator.encode(image), moved.unsqueeze(1))]

    def decode_prompts(self, controls: Controls, context: EditContext) -> list[str] | None:
        return list(context.prompts) if isinstance(context, PixelContext) else None
