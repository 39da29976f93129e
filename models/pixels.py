"""Plain descent on pixels: the baseline that shows what the generator adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from models.diffusion import LatentDiffusion
from runner.types import Anchor, Controls, Problem, Scene, Schedules, Start


class PixelDescent:
    """The picture itself as the only control (`pixels`, "b 3 h w"); region and distances are the diffusion model's."""

    lasting: tuple[str, ...] = ()

    def __init__(self, generator: LatentDiffusion) -> None:
        self.generator = generator
        self.resolution, self.digest, self.lr_scale = generator.resolution, generator.digest, generator.lr_scale
        self.recipe = generator.recipe

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check(problems)

    def begin(self, problems: Sequence[Problem], schedules: Schedules) -> Start:
        """Start from the original pictures, without exchanging words."""
        start = self.generator.begin(problems, schedules)
        anchor = start.anchors[0]
        anchor = replace(anchor, norm=anchor.original.flatten(1).norm(dim=1))
        return Start({"pixels": anchor.original.clone()}, [anchor], start.notes)

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
        return self.generator.sample(prompts, seeds)

    def word_maps(
        self, image: Float[Tensor, "3 h w"], prompt: str, phrase: str, seed: int
    ) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "y x"]]:
        return self.generator.word_maps(image, prompt, phrase, seed)

    def fresh(self, anchor: Anchor, k: int) -> Anchor:
        return anchor

    @torch.no_grad()
    def pictures(self, controls: Controls, anchor: Anchor) -> Float[Tensor, "b 1 3 h w"]:
        return self(controls, anchor)[-1].image[:, None]

    def worded(self, controls: Controls, anchor: Anchor) -> None:
        """No prompt is optimised."""

    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        pixels = controls["pixels"]
        image = pixels + (pixels.clamp(0, 1) - pixels).detach()
        return [Scene(image, self.generator.networks.encode(image), image.unsqueeze(1))]
