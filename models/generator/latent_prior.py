"""The generator as a prior alone: of it only the start latent is optimised, and no words are said (Nguyen et al., 2016,
"Synthesizing the preferred inputs for neurons in neural networks via deep generator networks")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from classifier_lens.models.generator.editable_region import needs_segmenter
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.single_image import SingleImageGenerator
from classifier_lens.runner.types import (
    CaptionEdit,
    Controls,
    EditContext,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Scene,
)


@dataclass(frozen=True, kw_only=True)
class PromptedContext(EditContext):
    """prompts: what each picture is asked with, "" for no words."""

    prompts: tuple[str, ...]


def with_empty_prompt(problem: Problem) -> Problem:
    """The problem under the empty prompt, where its picture is drawn and no words are needed to find a mask."""
    if problem.load is not None or needs_segmenter(problem):
        return problem
    return replace(problem, edit=CaptionEdit.unchanged("", ""))


class LatentPrior(SingleImageGenerator):
    """A diffusion model under the empty prompt; where a picture is given or a mask has to be found, under its own."""

    def __init__(self, generator: LatentDiffusion) -> None:
        self.generator = generator

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check([with_empty_prompt(problem) for problem in problems])

    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization:
        prompted = [with_empty_prompt(problem) for problem in problems]
        initialization = self.generator.initialize(prompted, prompt_to_prompt, precomputed)
        prompts = tuple(problem.edit.target for problem in prompted)
        return replace(initialization, context=PromptedContext(**vars(initialization.context), prompts=prompts))

    def render_candidates(self, initialization: Initialization) -> list[Scene]:
        return self.generator.render_candidates(initialization)

    def select(self, initialization: Initialization, indices: Sequence[int]) -> tuple[Controls, EditContext]:
        return self.generator.select(initialization, indices)

    def __call__(self, controls: Controls, context: EditContext) -> list[Scene]:
        return self.generator(controls, context)

    def decode_prompts(self, controls: Controls, context: EditContext) -> list[str]:
        assert isinstance(context, PromptedContext)
        return list(context.prompts)
