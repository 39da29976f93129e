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
        self, problems: Sequence[Problem], schedules: PromptToPrompt, found: Precomputed | None = None
    ) -> Initialization:
        asked = [with_empty_prompt(problem) for problem in problems]
        start = self.generator.initialize(asked, schedules, found)
        prompts = tuple(problem.edit.target for problem in asked)
        return replace(start, contexts=[PromptedContext(**vars(anchor), prompts=prompts) for anchor in start.contexts])

    def __call__(self, controls: Controls, anchor: EditContext) -> list[Scene]:
        return self.generator(controls, anchor)

    def decode_prompts(self, controls: Controls, anchor: EditContext) -> list[str]:
        assert isinstance(anchor, PromptedContext)
        return list(anchor.prompts)
