"""Images without a generator: what optimizes their pixels, or only looks at them, needs no diffusion model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.devices import device_of
from classifier_lens.models.generator.editable_region import described, free, masks_of, needs_mask
from classifier_lens.models.generator.single_image import SinglePicture
from classifier_lens.models.seeded_noise import noise_about_gray
from classifier_lens.models.segmenter.segmenter import Deferred, Softening, loaded
from classifier_lens.runner.configuration.value_ranges import NonNegative, Pixels, Rates
from classifier_lens.runner.protocols import Segmenter
from classifier_lens.runner.types import Anchor, Controls, Found, Problem, Scene, Schedules, Start, UserError


class ImageSpace(SinglePicture):
    """Given images as they are, and where none is given noise about gray. It draws nothing of words, has no latents and
    no attention: masks are the problems' own, or a segmenter's that needs no attention map, and of the two distances to
    the original that of pixels remains.

    resolution: side of the images in pixels; softening: of the masks; lr_scale: what rates are multiplied by; std: of
    the noise about gray, images in [0, 1].
    """

    can_draw = False
    recompute = "none"
    dtype = torch.float32

    def __init__(
        self, resolution: Pixels, softening: Softening, lr_scale: Rates, std: NonNegative,
        segmenter: Segmenter | Deferred, device: str,
    ) -> None:  # fmt: skip
        self.resolution, self.softening, self.lr_scale, self.std = resolution, softening, lr_scale, std
        self.segmenter, self.device = segmenter, device_of("generator.device", device)
        self.recipe = repr(("images", resolution, std))
        self.digest = hashlib.sha256(self.recipe.encode()).hexdigest()

    def check(self, problems: Sequence[Problem]) -> None:
        """Load the segmenter if a mask has to be found. Raise UserError where it would have to follow attention."""
        if not any(map(needs_mask, problems)):
            return
        self.segmenter = loaded(self.segmenter)
        if self.segmenter.needs_map:
            raise UserError(
                "generator=none: this segmenter follows a generator's attention map; give a mask by task.mask or "
                "segmenter=file, a segmenter that finds words (planted, clipseg, grounded_sam), or task.keep=none"
            )

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> NoReturn:
        """Raises UserError: nothing is drawn."""
        raise UserError(f"generator=none: an image of '{prompts[0]}' is asked for, which only a generator draws")

    def word_maps(self, image: Float[Tensor, "3 h w"], prompt: str, phrase: str, seed: int) -> NoReturn:
        """Raises UserError: nothing attends to words."""
        raise UserError(f"generator=none: asked for is where a generator attends to '{phrase}', and there is none")

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 0 1 1"]:
        """No latents."""
        return images.new_zeros(len(images), 0, 1, 1)

    @torch.no_grad()
    def begin(self, problems: Sequence[Problem], schedules: Schedules, found: Found | None = None) -> Start:
        """The images and the region that is free, which the schedules change nothing about."""
        if found is None:
            images = torch.stack([self._image(problem) for problem in problems]).to(self.device)
            found = {"images": images, "masks": masks_of(images, problems, self._segment)}
        images, masks = found["images"], found["masks"]
        nothing = self.encode(images)
        anchor = Anchor(
            base={}, noise=nothing[:, None], norm=images.flatten(1).norm(dim=1),
            mask=free(self.softening(masks), masks, [problem.keep for problem in problems]),
            latent_mask=images.new_ones(len(images), 1, 1, 1), original=images, encoded=nothing,
            templates=nothing[:, None], maps={}, inject=images.new_zeros(len(images)),
            blend=images.new_zeros(len(images)),
        )  # fmt: skip
        return Start({"pixels": images.clone()}, [anchor], described(masks, problems), found=found)

    def _image(self, problem: Problem) -> Float[Tensor, "3 h w"]:
        if problem.load is not None:
            return problem.load()
        return noise_about_gray((3, self.resolution, self.resolution), self.std, problem.seed)

    def _segment(
        self, images: Float[Tensor, "b 3 h w"], problems: Sequence[Problem], rows: Sequence[int]
    ) -> Float[Tensor, "b 1 h w"]:
        """The segmenter's masks, with no attention anywhere."""
        maps = torch.zeros_like(images[:, :1])
        return loaded(self.segmenter)(images, maps, [p.region for p in problems], [p.picture for p in problems])

    def __call__(self, controls: Controls, anchor: Anchor) -> list[Scene]:
        """The images as they are."""
        image = controls["pixels"]
        return [Scene(image, self.encode(image), image.unsqueeze(1))]

    def worded(self, controls: Controls, anchor: Anchor) -> list[str]:
        """No words are said."""
        return [""] * len(anchor.original)
