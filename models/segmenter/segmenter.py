"""From cross-attention maps to the masks of objects, what masks from words share, and what softens a mask before it is
used."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from classifier_lens.models.classifier.image_classifier import network_digest
from classifier_lens.runner.configuration.value_ranges import (
    BelowOne,
    BlurSigma,
    PerProblemCount,
    PixelDistance,
    Pixels,
)
from classifier_lens.runner.protocols import Segmenter
from classifier_lens.runner.types import UserError


@dataclass(frozen=True)
class AttentionSegmenter:
    """The map itself, resized and cut: a pixel belongs to the object where its map exceeds `threshold` (in [0, 1])."""

    threshold: BelowOne
    needs_attention_map: ClassVar[bool] = True

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        return (resize_maps(maps, images) > self.threshold).to(images.dtype)


@dataclass(frozen=True)
class GrabCutSegmenter:
    """The map cut along the picture's colours and edges (GrabCut, Rother et al., 2004).

    Where the map exceeds `sure_foreground` a pixel belongs to the object, below `sure_background` it does not; between
    them the cut decides in `iterations` rounds, starting from the map cut at `probable_foreground`. All in [0, 1]."""

    sure_background: BelowOne
    probable_foreground: BelowOne
    sure_foreground: BelowOne
    iterations: PerProblemCount
    needs_attention_map: ClassVar[bool] = True

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        masks = [self._cut(*pair) for pair in zip(images.cpu(), resize_maps(maps, images)[:, 0].cpu(), strict=True)]
        return torch.stack(masks)[:, None].to(images)

    def _cut(self, image: Float[Tensor, "3 h w"], likeness: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
        """One picture; GrabCut's colour clusters start from a fixed seed. What the map leaves no choice in stays."""
        labels = torch.full(likeness.shape, cv2.GC_PR_BGD, dtype=torch.uint8)
        labels[likeness > self.probable_foreground] = cv2.GC_PR_FGD
        labels[likeness > self.sure_foreground] = cv2.GC_FGD
        labels[likeness < self.sure_background] = cv2.GC_BGD
        inside = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        if not inside.any() or inside.all():
            return inside.float()
        cut = labels.numpy().copy()
        cv2.setRNGSeed(0)
        pixels = to_uint8(image).permute(1, 2, 0).contiguous().numpy()
        outside_model, inside_model = np.zeros((1, 65)), np.zeros((1, 65))
        rectangle = (0, 0, 0, 0)  # not read: the labels stand in its place
        cv2.grabCut(pixels, cut, rectangle, outside_model, inside_model, self.iterations, cv2.GC_INIT_WITH_MASK)
        return torch.from_numpy((cut == cv2.GC_FGD) | (cut == cv2.GC_PR_FGD)).float()


def resize_maps(maps: Float[Tensor, "b 1 y x"], images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Maps at the pictures' size, in [0, 1], each with maximum 1."""
    large = F.interpolate(maps, size=images.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    return large / large.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12)


def to_uint8(image: Float[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """A picture in [0, 1] in the 256 levels that it is saved in and that libraries of pictures take."""
    return (image * 255).round().byte()


@dataclass(frozen=True)
class LazySegmenter:
    """A segmenter that is loaded where a mask has to be found: elsewhere its weights need not be there."""

    load: Callable[[], Segmenter]


def load_if_lazy(segmenter: Segmenter | LazySegmenter) -> Segmenter:
    """The segmenter, loaded now if that was put off."""
    return segmenter.load() if isinstance(segmenter, LazySegmenter) else segmenter


class TextPromptedSegmenter(ABC):
    """What finds words in one picture after another, so that no mask depends on the batch: a `TextSegmenter`, and a
    `Segmenter` that looks at no map."""

    needs_attention_map: ClassVar[bool] = False

    @abstractmethod
    def mask(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "1 h w"]:
        """1 where the picture shows what the words name, else 0."""

    def segment(self, images: Float[Tensor, "b 3 h w"], words: Sequence[str]) -> Float[Tensor, "b 1 h w"]:
        """The mask of each picture's words."""
        return torch.stack([self.mask(*pair) for pair in zip(images, words, strict=True)]).to(images)

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        return self.segment(images, words)


def grounding_dino_prompt(words: str) -> str:
    """Words as Grounding DINO is asked for them: one phrase in lower case that ends in a full stop. Full stops and
    question marks within, as in `St. Bernard`, would end a phrase of their own there."""
    return f"{' '.join(re.sub('[.?]', ' ', words.lower()).split())}."


class BoxPromptedSegmenter(TextPromptedSegmenter):
    """What puts boxes around what words name, and finds the object in each box: all that lies in one of the masks. No
    box gives an empty mask."""

    @abstractmethod
    def detect_boxes(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "n 4"]:
        """Left, top, right and bottom, in pixels."""

    @abstractmethod
    def masks_in_boxes(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n h w"]:
        """1 where a box's object is, else 0; at least one box."""

    def mask(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "1 h w"]:
        """1 where the picture shows what the words name, else 0."""
        boxes = self.detect_boxes(image, words)
        return (
            self.masks_in_boxes(image, boxes).amax(dim=0, keepdim=True) if len(boxes) else torch.zeros_like(image[:1])
        )


def joint_digest(networks: Sequence[Any], *settings: object) -> str:
    """SHA-256 over the weights of networks and whatever else masks follow from."""
    parts = [*map(network_digest, networks), *map(str, settings)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class MaskPostprocess:
    """Postprocessing of a mask, in pixels (published: 3, 20, 30 and 45 at 512 px); 0 leaves a step out.

    erode_kernel, dilate_kernel: sides of square windows; blur_sigma: standard deviation of a Gaussian that is cut off
    at a window of side `blur_kernel`, which bounds how far the mask spreads. Raises UserError for a window without a
    center."""

    erode_kernel: PixelDistance
    dilate_kernel: PixelDistance
    blur_sigma: BlurSigma
    blur_kernel: Pixels

    def __post_init__(self) -> None:
        if self.blur_sigma and (self.blur_kernel < 1 or self.blur_kernel % 2 == 0):
            raise UserError(
                f"generator.mask_postprocess: blur_kernel={self.blur_kernel}: allowed are odd numbers of pixels"
            )

    def __call__(self, masks: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Minimum, then maximum over the windows, then the Gaussian. Raises UserError for a Gaussian's window that the
        masks, mirrored at their borders, do not fill."""
        if self.blur_sigma and self.blur_kernel // 2 >= (side := min(masks.shape[-2:])):
            key = f"generator.mask_postprocess: blur_kernel={self.blur_kernel}"
            raise UserError(f"{key}: allowed are up to {2 * side - 1} pixels for images of {side} pixels")
        if self.erode_kernel:
            masks = -_grow(-masks, self.erode_kernel)
        if self.dilate_kernel:
            masks = _grow(masks, self.dilate_kernel)
        if self.blur_sigma:
            masks = gaussian_blur(masks, [self.blur_kernel] * 2, [self.blur_sigma] * 2)
        return masks.clamp(0, 1)


def _grow(masks: Tensor, side: int) -> Tensor:
    """Maximum over a window of `side` pixels, the border repeated. A window of an even side reaches one pixel further
    up and to the left, as published."""
    low = side // 2
    padded = F.pad(masks, (low, side - 1 - low, low, side - 1 - low), mode="replicate")
    return F.max_pool2d(padded, side, stride=1)
