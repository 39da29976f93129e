"""Masks of objects from cross-attention maps, and the base classes of segmenters that take a text prompt."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.image_conversion import to_uint8_array
from classifier_lens.runner.configuration.value_ranges import BelowOne, PerProblemCount


@dataclass(frozen=True)
class AttentionSegmenter:
    """The thresholded cross-attention map.

    Args:
        threshold: a pixel belongs to the object where the resized map, with maximum 1, exceeds it; in [0, 1).
    """

    threshold: BelowOne
    needs_attention_map: ClassVar[bool] = True

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        return (resize_maps(maps, images) > self.threshold).to(images.dtype)


@dataclass(frozen=True)
class GrabCutSegmenter:
    """The cross-attention map refined along the colors and edges of the image (GrabCut, Rother et al., 2004).

    Args:
        sure_background: pixels whose map value is lower are background.
        probable_foreground: pixels whose map value exceeds it are the object in the initial segmentation.
        sure_foreground: pixels whose map value exceeds it are the object. All thresholds lie in [0, 1).
        iterations: of GrabCut, which decides the pixels between `sure_background` and `sure_foreground`.
    """

    sure_background: BelowOne
    probable_foreground: BelowOne
    sure_foreground: BelowOne
    iterations: PerProblemCount
    needs_attention_map: ClassVar[bool] = True

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        resized_maps = resize_maps(maps, images)[:, 0]
        masks = [self._segment(*pair) for pair in zip(images.cpu(), resized_maps.cpu(), strict=True)]
        return torch.stack(masks)[:, None].to(images)

    def _segment(self, image: Float[Tensor, "3 h w"], attention: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
        """The mask of one image; an initial segmentation without object or without background is returned as it is."""
        labels = torch.full(attention.shape, cv2.GC_PR_BGD, dtype=torch.uint8)
        labels[attention > self.probable_foreground] = cv2.GC_PR_FGD
        labels[attention > self.sure_foreground] = cv2.GC_FGD
        labels[attention < self.sure_background] = cv2.GC_BGD
        foreground = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        if not foreground.any() or foreground.all():
            return foreground.float()
        refined = labels.numpy().copy()
        cv2.setRNGSeed(0)  # of the color clusters
        pixels = np.ascontiguousarray(to_uint8_array(image))
        background_model, foreground_model = np.zeros((1, 65)), np.zeros((1, 65))
        rectangle = (0, 0, 0, 0)  # not read, because GrabCut starts from the labels
        cv2.grabCut(
            pixels, refined, rectangle, background_model, foreground_model, self.iterations, cv2.GC_INIT_WITH_MASK
        )
        return torch.from_numpy((refined == cv2.GC_FGD) | (refined == cv2.GC_PR_FGD)).float()


def resize_maps(maps: Float[Tensor, "b 1 y x"], images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """The maps at the size of the images, in [0, 1], each scaled to maximum 1."""
    resized = F.interpolate(maps, size=images.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    return resized / resized.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12)


class TextPromptedSegmenter(ABC):
    """A segmenter that locates the words of a prompt, one image at a time, so that no mask depends on the batch.

    It is both a `TextSegmenter` and a `Segmenter` that ignores the cross-attention maps.
    """

    needs_attention_map: ClassVar[bool] = False

    @abstractmethod
    def mask(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "1 h w"]:
        """1 where the image shows the object that the words name, else 0."""

    def segment(self, images: Float[Tensor, "b 3 h w"], words: Sequence[str]) -> Float[Tensor, "b 1 h w"]:
        """The mask of each image for its words."""
        return torch.stack([self.mask(*pair) for pair in zip(images, words, strict=True)]).to(images)

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        return self.segment(images, words)


def grounding_dino_prompt(words: str) -> str:
    """The text prompt of Grounding DINO: one phrase in lower case that ends with a period.

    Periods and question marks inside the words, as in `St. Bernard`, are removed, since the model splits phrases there.
    """
    return f"{' '.join(re.sub('[.?]', ' ', words.lower()).split())}."


class BoxPromptedSegmenter(TextPromptedSegmenter):
    """A detector for bounding boxes and a segmenter for the object in each box.

    The mask is the union of the masks of all boxes; without a box it is empty.
    """

    @abstractmethod
    def detect_boxes(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "n 4"]:
        """Bounding boxes (left, top, right, bottom) in pixels of the objects that the words name."""

    @abstractmethod
    def masks_in_boxes(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n h w"]:
        """The mask of the object in each box, 1 inside and 0 outside; there is at least one box."""

    def mask(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "1 h w"]:
        boxes = self.detect_boxes(image, words)
        if not len(boxes):
            return torch.zeros_like(image[:1])
        return self.masks_in_boxes(image, boxes).amax(dim=0, keepdim=True)
