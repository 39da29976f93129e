"""Plain descent on pixels: the baseline that shows what the generator adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from models.diffusion import LatentDiffusion
from models.single_picture import SinglePicture
from runner.types import Anchor, Controls, Problem, Scene, Schedules, Start


class PixelDescent(SinglePicture):
    """The picture itself as the only control (`pixels`, "b 3 h w"); region and distances are the diffusion model's."""

    def __init__(self, generator: LatentDiffusion) -> None:
        self.generator = generator

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check(problems)

    def begin(self, problems: Sequence[Problem], schedules: Schedules) -> Start:
        """Start from the original pictures, without exchanging words."""
        start = self.generator.begin(problems, schedules)
        anchor = start.anchors[0]
        anchor = replace(anchor, norm=anchor.original.flatten(1).norm(dim=1))
        return Start({"pixels": anchor.original.clone()}, [anchor], start.notes)

    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        pixels = controls["pixels"]
        image = pixels + (pixels.clamp(0, 1) - pixels).detach()
        return [Scene(image, self.generator.networks.encode(image), image.unsqueeze(1))]
