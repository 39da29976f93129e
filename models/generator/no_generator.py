"""Images without a generator: tasks and baselines that optimize pixels, or only look at images, need no diffusion
model."""

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
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.models.generator.single_image import SingleImageGenerator
from classifier_lens.models.seeded_noise import gray_noise
from classifier_lens.models.segmenter.mask_postprocess import MaskPostprocess
from classifier_lens.runner.configuration.value_ranges import LearningRates, NonNegative, Pixels
from classifier_lens.runner.lazy_part import LazyPart, load_if_lazy
from classifier_lens.runner.protocols import Segmenter
from classifier_lens.runner.types import (
    DISABLED_PROMPT_TO_PROMPT,
    Candidate,
    Controls,
    Initialization,
    Precomputed,
    Problem,
    PromptToPrompt,
    Reference,
    Scene,
    UserError,
)


class NoGenerator(SingleImageGenerator[None]):
    """The given images as they are, and noise about gray where none is given. There are no latents and no attention
    maps: masks are the problems' own, or those of a segmenter that needs no attention map; of the two distances to the
    original the one of pixels remains.

    resolution: side of the images in pixels; mask_postprocess: of the masks; lr_scale: factor of the learning rate, by
    control; noise_std: of the noise about gray, images in [0, 1]."""

    can_generate = False
    gradient_checkpointing = "none"
    dtype = torch.float32
    prompt_to_prompt = PromptToPrompt(**DISABLED_PROMPT_TO_PROMPT)

    def __init__(
        self, resolution: Pixels, mask_postprocess: MaskPostprocess, lr_scale: LearningRates, noise_std: NonNegative,
        segmenter: Segmenter | LazyPart[Segmenter], device: str,
    ) -> None:  # fmt: skip
        self.resolution, self.mask_postprocess, self.lr_scale = resolution, mask_postprocess, lr_scale
        self.noise_std, self.segmenter = noise_std, segmenter
        self.device = parse_device("generator.device", device)
        self.fingerprint = repr(("images", resolution, noise_std))
        self.digest = hashlib.sha256(self.fingerprint.encode()).hexdigest()

    def check(self, problems: Sequence[Problem]) -> None:
        """Load the segmenter if a problem needs it. Raise UserError for one that needs attention maps."""
        if not any(map(needs_segmenter, problems)):
            return
        self.segmenter = load_if_lazy(self.segmenter)
        if self.segmenter.needs_attention_map:
            raise UserError(
                "generator=none: this segmenter needs a generator's attention map; give a mask by task.mask or "
                "segmenter=file, a segmenter that finds words (planted, clipseg, grounded_sam), or task.preserve=none"
            )

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> NoReturn:
        """Raises UserError: there is nothing that generates images."""
        raise UserError(f"generator=none: an image of '{prompts[0]}' is needed, which only a generator can make")

    def word_attention_maps(self, image: Float[Tensor, "3 h w"], prompt: str, phrase: str, seed: int) -> NoReturn:
        """Raises UserError: there are no attention maps."""
        raise UserError(f"generator=none: the attention map of '{phrase}' is needed, which only a generator has")

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 0 1 1"]:
        """Empty latents."""
        return images.new_zeros(len(images), 0, 1, 1)

    @torch.no_grad()
    def initialize(
        self, problems: Sequence[Problem], prompt_to_prompt: PromptToPrompt, precomputed: Precomputed | None = None
    ) -> Initialization[None]:
        """The images and the editable region. Prompt-to-Prompt has no effect."""
        if precomputed is None:
            images = torch.stack([self._image(problem) for problem in problems]).to(self.device)
            precomputed = {"images": images, "masks": object_masks(images, problems, self._segment)}
        images, masks = precomputed["images"], precomputed["masks"]
        mask = editable_region(self.mask_postprocess(masks), masks, [problem.preserve for problem in problems])
        reference = Reference(images, self.encode(images), mask, images.new_ones(len(images), 1, 1, 1))
        edited = [
            image if p.load_edited is None else p.load_edited().to(image)
            for p, image in zip(problems, images, strict=True)
        ]
        controls, warnings = {"pixels": torch.stack(edited)}, mask_warnings(masks, problems)
        return Initialization(controls, None, reference, [Candidate()], warnings, precomputed)

    def _image(self, problem: Problem) -> Float[Tensor, "3 h w"]:
        if problem.load is not None:
            return problem.load()
        return gray_noise((3, self.resolution, self.resolution), self.noise_std, problem.seed)

    def _segment(
        self, images: Float[Tensor, "b 3 h w"], problems: Sequence[Problem], rows: Sequence[int]
    ) -> Float[Tensor, "b 1 h w"]:
        """The segmenter's masks, with attention maps of 0."""
        maps = torch.zeros_like(images[:, :1])
        return load_if_lazy(self.segmenter)(
            images, maps, [p.words_to_segment for p in problems], [p.image_name for p in problems]
        )

    def __call__(self, controls: Controls, context: None) -> list[Scene]:
        """The images as they are."""
        image = controls["pixels"]
        return [Scene(image, self.encode(image), image.unsqueeze(1))]

    def decode_prompts(self, controls: Controls, context: None) -> list[str]:
        """Empty prompts."""
        return [""] * len(controls["pixels"])


def given_images(generator: LatentDiffusion) -> NoGenerator:
    """The images of the problems as they are, for tasks that generate and edit images themselves."""
    masks = generator.mask_postprocess["pixels"]
    return NoGenerator(generator.resolution, masks, {}, 0.0, generator.segmenter, str(generator.device))
