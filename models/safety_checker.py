"""Pictures that nobody should have to see: Stable Diffusion's safety checker flags them."""

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
from classifier_lens.models.segmenter.segmenter import joint_digest, to_uint8
from classifier_lens.runner.configuration.value_ranges import Fraction
from classifier_lens.runner.types import UserError


@dataclass(frozen=True)
class SafetyChecker:
    """A network that compares pictures with concepts by CLIP embedding. relative_blur_sigma: standard deviation, as a
    share of the picture's side, of what is put in a flagged picture's place."""

    network: StableDiffusionSafetyChecker
    processor: CLIPImageProcessor
    relative_blur_sigma: float
    digest: str

    def is_flagged(self, images: Float[Tensor, "n 3 h w"]) -> Bool[Tensor, " n"]:
        """Whether each picture in [0, 1] is near to one of the network's concepts; one at a time."""
        self.network.to(images.device)
        return torch.tensor([self._flagged(image) for image in images], device=images.device)

    @torch.no_grad()
    def _flagged(self, image: Float[Tensor, "3 h w"]) -> bool:
        given = self.processor(to_uint8(image), input_data_format="channels_first", return_tensors="pt").pixel_values
        # The network paints flagged pictures black; it is handed one that does not matter.
        _, flags = self.network(clip_input=given.to(image.device), images=[np.zeros((1, 1, 3))])
        return bool(flags[0])

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 3 h w"], Bool[Tensor, " n"]]:
        """The pictures, the flagged ones blurred, and which these are."""
        flags = self.is_flagged(images)
        return torch.where(flags[:, None, None, None], blur_images(images, self.relative_blur_sigma), images), flags


def blur_images(images: Float[Tensor, "n 3 h w"], share: float) -> Float[Tensor, "n 3 h w"]:
    """Pictures under a Gaussian whose standard deviation is that share of the shorter side."""
    side = min(images.shape[-2:])
    width = share * side
    reach = min(int(3 * width) + 1, side - 1)
    return gaussian_blur(images, [2 * reach + 1] * 2, [width] * 2)


def load(path: str | None, revision: str | None, relative_blur_sigma: Fraction) -> SafetyChecker:
    """The checker of a pipeline's folder, its parts `safety_checker` and `feature_extractor`; see `SafetyChecker`.

    path: a folder in diffusers' layout, or a hub id whose files are in the hub's cache at `revision`.
    Raises UserError if no path is given, and if weights are missing or of another kind.
    """
    key = f"safety_checker.path={path or 'null'}"
    if path is None:
        raise UserError(f"{key}: name a folder with safety_checker and feature_extractor, or a hub id")
    folder = local_folder(key, path, revision)
    with as_user_error(key):
        processor = CLIPImageProcessor.from_pretrained(folder / "feature_extractor")
    network = load_frozen(key, folder / "safety_checker", StableDiffusionSafetyChecker, torch.float32)
    return SafetyChecker(
        network,
        processor,
        relative_blur_sigma,
        joint_digest([network], processor.to_json_string(), relative_blur_sigma),
    )
