"""The generator as a prior alone: of it only the start latent is optimised, and no words are said (Nguyen et al., 2016,
"Synthesizing the preferred inputs for neurons in neural networks via deep generator networks")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from classifier_lens.models.generator.editable_region import needs_mask
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.single_image import SinglePicture
from classifier_lens.runner.types import Anchor, Controls, Edit, Found, Problem, Scene, Schedules, Start


@dataclass(frozen=True, kw_only=True)
class PromptedAnchor(Anchor):
    """prompts: what each picture is asked with, "" for no words."""

    prompts: tuple[str, ...]


def wordless(problem: Problem) -> Problem:
    """The problem under the empty prompt, where its picture is drawn and no words are needed to find a mask."""
    if problem.load is not None or needs_mask(problem):
        return problem
    return replace(problem, edit=Edit.unchanged("", ""))


class LatentPrior(SinglePicture):
    """A diffusion model under the empty prompt; where a picture is given or a mask has to be found, under its own."""

    def __init__(self, generator: LatentDiffusion) -> None:
        self.generator = generator

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check([wordless(problem) for problem in problems])

    def begin(self, problems: Sequence[Problem], schedules: Schedules, found: Found | None = None) -> Start:
        asked = [wordless(problem) for problem in problems]
        start = self.generator.begin(asked, schedules, found)
        prompts = tuple(problem.edit.target for problem in asked)
        return replace(start, anchors=[PromptedAnchor(**vars(anchor), prompts=prompts) for anchor in start.anchors])

    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        return self.generator(controls, anchor)

    def worded(self, controls: Controls, anchor: Anchor) -> list[str]:
        assert isinstance(anchor, PromptedAnchor)
        return list(anchor.prompts)
