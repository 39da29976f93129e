"""Pictures as what is optimised: the baselines that show what a generator adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.latent_prior import PromptedAnchor
from classifier_lens.models.generator.no_generator import ImageSpace
from classifier_lens.models.generator.prompt_diffusion import unmarked
from classifier_lens.models.generator.prompt_tuning import MARK
from classifier_lens.models.generator.single_image import SinglePicture
from classifier_lens.models.seeded_noise import noise_about_gray, stream
from classifier_lens.runner.configuration.value_ranges import NonNegative
from classifier_lens.runner.types import Anchor, Controls, Found, Problem, Scene, Schedules, Start

# Where a picture begins that is not given: from the problem and the picture drawn of its words, (3, h, w) in [0, 1].
Begun = Callable[[Problem, Float[Tensor, "3 h w"]], Float[Tensor, "3 h w"]]


def as_drawn(problem: Problem, drawn: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """The picture drawn of the prompt."""
    return drawn


def from_noise(problem: Problem, drawn: Float[Tensor, "3 h w"], std: NonNegative) -> Float[Tensor, "3 h w"]:
    """Grey with Gaussian noise of the problem's seed, standard deviation `std` in [0, 1] units."""
    return noise_about_gray(drawn.shape, std, problem.seed).to(drawn)


def from_words(problem: Problem, drawn: Float[Tensor, "3 h w"], std: NonNegative) -> Float[Tensor, "3 h w"]:
    """The picture drawn of the prompt; noise, see `from_noise`, where its tokens are free."""
    return from_noise(problem, drawn, std) if MARK.search(problem.edit.source) else drawn


def from_example(problem: Problem, drawn: Float[Tensor, "3 h w"], std: NonNegative) -> Float[Tensor, "3 h w"]:
    """The problem's example; noise, see `from_noise`, where it has none."""
    return from_noise(problem, drawn, std) if problem.example is None else problem.example().to(drawn)


def jitter(images: Float[Tensor, "b 3 h w"], shifts: Int[Tensor, "b 2"]) -> Float[Tensor, "b 3 h w"]:
    """Each picture moved by its own rows and columns; what leaves it on one side comes in on the other."""
    moved = [image.roll(tuple(by), dims=(1, 2)) for image, by in zip(images, shifts.tolist(), strict=True)]
    return torch.stack(moved)


@dataclass(frozen=True, kw_only=True)
class PixelAnchor(PromptedAnchor):
    """What a batch of pictures needs besides. seeds: per problem; shifts: rows and columns by which a picture is moved
    before it is looked at."""

    seeds: tuple[int, ...]
    shifts: Int[Tensor, "b 2"]


class PixelDescent(SinglePicture):
    """The picture itself as the only control (`pixels`, "b 3 h w"); region and distances are the diffusion model's.

    begun: where a picture begins that is not given; reach: largest jitter in pixels, both ways, drawn anew for every
    step, 0 for none.
    """

    def __init__(self, generator: LatentDiffusion | ImageSpace, begun: Begun, reach: int) -> None:
        self.generator, self.begun, self.reach = generator, begun, reach

    def check(self, problems: Sequence[Problem]) -> None:
        self.generator.check([unmarked(problem) for problem in problems])

    def begin(self, problems: Sequence[Problem], schedules: Schedules, found: Found | None = None) -> Start:
        """Start from the original pictures, without exchanging words."""
        start = self.generator.begin([unmarked(problem) for problem in problems], schedules, found)
        anchor = start.anchors[0]
        original, encoded = anchor.original.clone(), anchor.encoded.clone()
        prompts = self.generator.worded(start.controls, anchor) or [problem.edit.target for problem in problems]
        for i, problem in enumerate(problems):
            begun = original[i] if problem.load is not None else self.begun(problem, drawn := original[i])
            if problem.load is None and begun is not drawn:
                original[i], encoded[i : i + 1] = begun, self._encoded(begun)
                prompts[i] = ""
        seeds = tuple(problem.seed for problem in problems)
        fields = vars(anchor) | {"original": original, "encoded": encoded, "norm": original.flatten(1).norm(dim=1)}
        anchor = PixelAnchor(
            **fields, prompts=tuple(prompts), seeds=seeds, shifts=torch.zeros(len(seeds), 2, dtype=torch.long)
        )
        return Start({"pixels": original.clone()}, [anchor], start.notes, found=start.found)

    @torch.no_grad()
    def _encoded(self, picture: Float[Tensor, "3 h w"]) -> Float[Tensor, "1 c y x"]:
        return self.generator.encode(picture[None])

    def fresh(self, anchor: Anchor, k: int) -> Anchor:
        """The constants of step k: the anchor itself without jitter, else shifts from each problem's seed and k."""
        if not self.reach:
            return anchor
        assert isinstance(anchor, PixelAnchor)
        draws = [torch.Generator().manual_seed(stream(seed, "jitter", k)) for seed in anchor.seeds]
        shifts = [torch.randint(-self.reach, self.reach + 1, (2,), generator=draw) for draw in draws]
        return replace(anchor, shifts=torch.stack(shifts))

    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        """The picture cut to [0, 1], which lets the gradient pass; what is looked at is moved as the anchor says."""
        pixels = controls["pixels"]
        image = pixels + (pixels.clamp(0, 1) - pixels).detach()
        moved = jitter(image, anchor.shifts) if isinstance(anchor, PixelAnchor) and anchor.shifts.any() else image
        return [Scene(image, self.generator.encode(image), moved.unsqueeze(1))]

    def worded(self, controls: Controls, anchor: Anchor) -> list[str] | None:
        return list(anchor.prompts) if isinstance(anchor, PixelAnchor) else None
