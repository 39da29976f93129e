"""Stable Diffusion's safety checker, which flags generated images with harmful content."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur
from transformers import CLIPImageProcessor

from classifier_lens.models.hub import as_user_error, load_frozen, local_folder
from classifier_lens.models.image_conversion import to_uint8
from classifier_lens.models.network_digest import joint_digest
from classifier_lens.runner.configuration.value_ranges import Fraction
from classifier_lens.runner.types import UserError


@dataclass(frozen=True)
class SafetyChecker:
    """A network that compares the CLIP embeddings of images and of harmful concepts.

    Args:
        relative_blur_sigma: standard deviation of the Gaussian that blurs flagged images, as a fraction of the shorter
            side of the image.
    """

    network: StableDiffusionSafetyChecker
    processor: CLIPImageProcessor
    relative_blur_sigma: float
    digest: str

    def is_flagged(self, images: Float[Tensor, "n 3 h w"]) -> Bool[Tensor, " n"]:
        """Whether each image in [0, 1] is similar to one of the concepts; images are checked one at a time."""
        self.network.to(images.device)
        return torch.tensor([self._is_image_flagged(image) for image in images], device=images.device)

    @torch.no_grad()
    def _is_image_flagged(self, image: Float[Tensor, "3 h w"]) -> bool:
        pixels = self.processor(to_uint8(image), input_data_format="channels_first", return_tensors="pt").pixel_values
        # The network overwrites flagged images with black, so it receives a dummy image.
        _, flags = self.network(clip_input=pixels.to(image.device), images=[np.zeros((1, 1, 3))])
        return bool(flags[0])

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 3 h w"], Bool[Tensor, " n"]]:
        """The images with flagged ones blurred, and the flags."""
        flags = self.is_flagged(images)
        return torch.where(flags[:, None, None, None], blur_images(images, self.relative_blur_sigma), images), flags


def blur_images(images: Float[Tensor, "n 3 h w"], relative_sigma: float) -> Float[Tensor, "n 3 h w"]:
    """The images blurred by a Gaussian whose standard deviation is a fraction of the shorter side."""
    side = min(images.shape[-2:])
    sigma = relative_sigma * side
    radius = min(int(3 * sigma) + 1, side - 1)
    return gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)


def load(path: str | None, revision: str | None, relative_blur_sigma: Fraction) -> SafetyChecker:
    """The safety checker of a pipeline, its folders `safety_checker` and `feature_extractor`.

    Args:
        path: a folder in diffusers' layout, or a hub id whose files are in the hub's cache at `revision`.

    Raises:
        UserError: the path is null, or the weights are missing or of another architecture.
    """
    key = f"safety_checker.path={path or 'null'}"
    if path is None:
        raise UserError(f"{key}: give a folder with safety_checker and feature_extractor, or a hub id")
    folder = local_folder(key, path, revision)
    with as_user_error(key):
        processor = CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
    network = load_frozen(key, folder / "safety_checker", StableDiffusionSafetyChecker, torch.float32)
    digest = joint_digest([network], processor.to_json_string(), relative_blur_sigma)
    return SafetyChecker(network, processor, relative_blur_sigma, digest)
