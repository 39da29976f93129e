"""Images without a generator: what optimizes their pixels, or only looks at them, needs no diffusion model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.devices import parse_device
from classifier_lens.models.generator.editable_region import (
    editable_region,
    mask_warnings,
    needs_segmenter,
    object_masks,
)
from classifier_lens.models.generator.single_image import SingleImageGenerator
from classifier_lens.models.seeded_noise import gray_noise
from classifier_lens.models.segmenter.mask_postprocess import MaskPostprocess
from classifier_lens.models.segmenter.segmenter import LazySegmenter, load_if_lazy
from classifier_lens.runner.configuration.value_ranges import LearningRates, NonNegative, Pixels
from classifier_lens.runner.protocols import Segmenter
from classifier_lens.runner.types import (
    DISABLED_PROMPT_TO_PROMPT,
    Candidate,
    Controls,
    EditContext,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Scene,
    UserError,
)


class NoGenerator(SingleImageGenerator):
    """Given images as they are, and where none is given noise about gray. It draws nothing of words, has no latents and
    no attention: masks are the problems' own, or a segmenter's that needs no attention map, and of the two distances to
    the original that of pixels remains.

    resolution: side of the images in pixels; mask_postprocess: of the masks; lr_scale: what rates are multiplied by;
    noise_std: of the noise about gray, images in [0, 1]."""

    can_generate = False
    gradient_checkpointing = "none"
    dtype = torch.float32
    prompt_to_prompt = PromptToPrompt(**DISABLED_PROMPT_TO_PROMPT)

    def __init__(
        self, resolution: Pixels, mask_postprocess: MaskPostprocess, lr_scale: LearningRates, noise_std: NonNegative,
        segmenter: Segmenter | LazySegmenter, device: str,
    ) -> None:  # fmt: skip
        self.resolution, self.mask_postprocess, self.lr_scale, self.noise_std = (
            resolution,
            mask_postprocess,
            lr_scale,
            noise_std,
        )
        self.segmenter, self.device = segmenter, parse_device("generator.device", device)
        self.fingerprint = repr(("images", resolution, noise_std))
        self.digest = hashlib.sha256(self.fingerprint.encode()).hexdigest()

    def check(self, problems: Sequence[Problem]) -> None:
        """Load the segmenter if a mask has to be found. Raise UserError where it would have to follow attention."""
        if not any(map(needs_segmenter, problems)):
            return
        self.segmenter = load_if_lazy(self.segmenter)
        if self.segmenter.needs_attention_map:
            raise UserError(
                "generator=none: this segmenter follows a generator's attention map; give a mask by task.mask or "
                "segmenter=file, a segmenter that finds words (planted, clipseg, grounded_sam), or task.preserve=none"
            )

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> NoReturn:
        """Raises UserError: nothing is drawn."""
        raise UserError(f"generator=none: an image of '{prompts[0]}' is asked for, which only a generator draws")

    def word_attention_maps(self, image: Float[Tensor, "3 h w"], prompt: str, phrase: str, seed: int) -> NoReturn:
        """Raises UserError: nothing attends to words."""
        raise UserError(f"generator=none: asked for is where a generator attends to '{phrase}', and there is none")

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 0 1 1"]:
        """No latents."""
        return images.new_zeros(len(images), 0, 1, 1)

    @torch.no_grad()
    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization:
        """The images and the editable region, which Prompt-to-Prompt has no influence on."""
        if precomputed is None:
            images = torch.stack([self._image(problem) for problem in problems]).to(self.device)
            precomputed = {"images": images, "masks": object_masks(images, problems, self._segment)}
        images, masks = precomputed["images"], precomputed["masks"]
        nothing = self.encode(images)
        context = EditContext(
            embeddings={}, variance_noise=nothing[:, None], latent_norm=images.flatten(1).norm(dim=1),
            mask=editable_region(self.mask_postprocess(masks), masks, [problem.preserve for problem in problems]),
            latent_mask=images.new_ones(len(images), 1, 1, 1), original=images, original_latent=nothing,
            original_trajectory=nothing[:, None], attention_maps={}, cross_replace_steps=images.new_zeros(len(images)),
            background_blend_steps=images.new_zeros(len(images)),
        )  # fmt: skip
        controls, warnings = {"pixels": images.clone()}, mask_warnings(masks, problems)
        return Initialization(controls, context, [Candidate()], warnings, precomputed)

    def _image(self, problem: Problem) -> Float[Tensor, "3 h w"]:
        if problem.load is not None:
            return problem.load()
        return gray_noise((3, self.resolution, self.resolution), self.noise_std, problem.seed)

    def _segment(
        self, images: Float[Tensor, "b 3 h w"], problems: Sequence[Problem], rows: Sequence[int]
    ) -> Float[Tensor, "b 1 h w"]:
        """The segmenter's masks, with no attention anywhere."""
        maps = torch.zeros_like(images[:, :1])
        return load_if_lazy(self.segmenter)(
            images, maps, [p.words_to_segment for p in problems], [p.image_name for p in problems]
        )

    def __call__(self, controls: Controls, context: EditContext) -> list[Scene]:
        """The images as they are."""
        image = controls["pixels"]
        return [Scene(image, self.encode(image), image.unsqueeze(1))]

    def decode_prompts(self, controls: Controls, context: EditContext) -> list[str]:
        """No words are said."""
        return [""] * len(context.original)
