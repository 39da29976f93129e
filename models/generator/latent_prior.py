"""The generator as a prior alone: only its start latent is optimized, without a prompt (Nguyen et al., 2016,
"Synthesizing the preferred inputs for neurons in neural networks via deep generator networks")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.models.generator.editable_region import needs_segmenter
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.single_image import SingleImageGenerator
from classifier_lens.runner.types import (
    CaptionEdit,
    Controls,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Scene,
)


@dataclass(frozen=True)
class LatentPriorContext:
    """diffusion: of the chain; prompts: of each image, "" for the empty prompt."""

    diffusion: DiffusionContext
    prompts: tuple[str, ...]


def with_empty_prompt(problem: Problem) -> Problem:
    """The problem with the empty prompt, where its image is generated and no mask is found by words."""
    if problem.load is not None or needs_segmenter(problem):
        return problem
    return replace(problem, edit=CaptionEdit.unchanged("", ""))


class LatentPrior(SingleImageGenerator[LatentPriorContext]):
    """A diffusion model with the empty prompt; with the problem's own prompt where an image is given or a mask has to
    be found."""

    def __init__(self, generator: LatentDiffusion) -> None:
        self.generator = generator

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check([with_empty_prompt(problem) for problem in problems])

    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization[LatentPriorContext]:
        prompted = [with_empty_prompt(problem) for problem in problems]
        start = self.generator.initialize(prompted, prompt_to_prompt, precomputed)
        context = LatentPriorContext(start.context, tuple(problem.edit.target for problem in prompted))
        return start.with_context(context)

    def render_candidates(self, initialization: Initialization[LatentPriorContext]) -> list[Scene]:
        return self.generator.render_candidates(initialization.with_context(initialization.context.diffusion))

    def select(
        self, initialization: Initialization[LatentPriorContext], indices: Sequence[int]
    ) -> tuple[Controls, LatentPriorContext]:
        context = initialization.context
        controls, diffusion = self.generator.select(initialization.with_context(context.diffusion), indices)
        return controls, replace(context, diffusion=diffusion)

    def __call__(self, controls: Controls, context: LatentPriorContext) -> list[Scene]:
        return self.generator(controls, context.diffusion)

    def decode_prompts(self, controls: Controls, context: LatentPriorContext) -> list[str]:
        return list(context.prompts)
