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

from classifier_lens.models.classifier.image_classifier import digest_of
from classifier_lens.runner.configuration.value_ranges import BelowOne, Blur, Pixels, Reach, Repeats
from classifier_lens.runner.protocols import Segmenter
from classifier_lens.runner.types import UserError


@dataclass(frozen=True)
class AttentionSegmenter:
    """The map itself, resized and cut: a pixel belongs to the object where its map exceeds `threshold` (in [0, 1])."""

    threshold: BelowOne
    needs_map: ClassVar[bool] = True

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        return (enlarged(maps, images) > self.threshold).to(images.dtype)


@dataclass(frozen=True)
class GrabCutSegmenter:
    """The map cut along the picture's colours and edges (GrabCut, Rother et al., 2004).

    Where the map exceeds `certain` a pixel belongs to the object, below `never` it does not; between them the cut
    decides in `iterations` rounds, starting from the map cut at `likely`. All in [0, 1].
    """

    never: BelowOne
    likely: BelowOne
    certain: BelowOne
    iterations: Repeats
    needs_map: ClassVar[bool] = True

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        masks = [self._cut(*pair) for pair in zip(images.cpu(), enlarged(maps, images)[:, 0].cpu(), strict=True)]
        return torch.stack(masks)[:, None].to(images)

    def _cut(self, image: Float[Tensor, "3 h w"], likeness: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
        """One picture; GrabCut's colour clusters start from a fixed seed. What the map leaves no choice in stays."""
        labels = torch.full(likeness.shape, cv2.GC_PR_BGD, dtype=torch.uint8)
        labels[likeness > self.likely] = cv2.GC_PR_FGD
        labels[likeness > self.certain] = cv2.GC_FGD
        labels[likeness < self.never] = cv2.GC_BGD
        inside = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        if not inside.any() or inside.all():
            return inside.float()
        cut = labels.numpy().copy()
        cv2.setRNGSeed(0)
        pixels = eight_bits(image).permute(1, 2, 0).contiguous().numpy()
        outside_model, inside_model = np.zeros((1, 65)), np.zeros((1, 65))
        rectangle = (0, 0, 0, 0)  # not read: the labels stand in its place
        cv2.grabCut(pixels, cut, rectangle, outside_model, inside_model, self.iterations, cv2.GC_INIT_WITH_MASK)
        return torch.from_numpy((cut == cv2.GC_FGD) | (cut == cv2.GC_PR_FGD)).float()


def enlarged(maps: Float[Tensor, "b 1 y x"], images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Maps at the pictures' size, in [0, 1], each with maximum 1."""
    large = F.interpolate(maps, size=images.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    return large / large.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12)


def eight_bits(image: Float[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """A picture in [0, 1] in the 256 levels that it is saved in and that libraries of pictures take."""
    return (image * 255).round().byte()


@dataclass(frozen=True)
class Deferred:
    """A segmenter that is loaded where a mask has to be found: elsewhere its weights need not be there."""

    load: Callable[[], Segmenter]


def loaded(segmenter: Segmenter | Deferred) -> Segmenter:
    """The segmenter, loaded now if that was put off."""
    return segmenter.load() if isinstance(segmenter, Deferred) else segmenter


class FromWords(ABC):
    """What finds words in one picture after another, so that no mask depends on the batch: a `TextSegmenter`, and a
    `Segmenter` that looks at no map."""

    needs_map: ClassVar[bool] = False

    @abstractmethod
    def mask(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "1 h w"]:
        """1 where the picture shows what the words name, else 0."""

    def find(self, images: Float[Tensor, "b 3 h w"], words: Sequence[str]) -> Float[Tensor, "b 1 h w"]:
        """The mask of each picture's words."""
        return torch.stack([self.mask(*pair) for pair in zip(images, words, strict=True)]).to(images)

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        return self.find(images, words)


def caption_of(words: str) -> str:
    """Words as Grounding DINO is asked for them: one phrase in lower case that ends in a full stop. Full stops and
    question marks within, as in `St. Bernard`, would end a phrase of their own there."""
    return f"{' '.join(re.sub('[.?]', ' ', words.lower()).split())}."


class FromBoxes(FromWords):
    """What puts boxes around what words name, and finds the object in each box: all that lies in one of the masks. No
    box gives an empty mask."""

    @abstractmethod
    def boxes(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "n 4"]:
        """Left, top, right and bottom, in pixels."""

    @abstractmethod
    def in_boxes(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n h w"]:
        """1 where a box's object is, else 0; at least one box."""

    def mask(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "1 h w"]:
        """1 where the picture shows what the words name, else 0."""
        boxes = self.boxes(image, words)
        return self.in_boxes(image, boxes).amax(dim=0, keepdim=True) if len(boxes) else torch.zeros_like(image[:1])


def joint_digest(networks: Sequence[Any], *settings: object) -> str:
    """SHA-256 over the weights of networks and whatever else masks follow from."""
    parts = [*map(digest_of, networks), *map(str, settings)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Softening:
    """Postprocessing of a mask, in pixels (published: 3, 20, 30 and 45 at 512 px); 0 leaves a step out.

    erode, dilate: sides of square windows; blur: standard deviation of a Gaussian that is cut off at a window of side
    `blur_kernel`, which bounds how far the mask spreads. Raises UserError for a window without a center.
    """

    erode: Reach
    dilate: Reach
    blur: Blur
    blur_kernel: Pixels

    def __post_init__(self) -> None:
        if self.blur and (self.blur_kernel < 1 or self.blur_kernel % 2 == 0):
            raise UserError(f"generator.softening: blur_kernel={self.blur_kernel}: allowed are odd numbers of pixels")

    def __call__(self, masks: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Minimum, then maximum over the windows, then the Gaussian. Raises UserError for a Gaussian's window that the
        masks, mirrored at their borders, do not fill."""
        if self.blur and self.blur_kernel // 2 >= (side := min(masks.shape[-2:])):
            key = f"generator.softening: blur_kernel={self.blur_kernel}"
            raise UserError(f"{key}: allowed are up to {2 * side - 1} pixels for images of {side} pixels")
        if self.erode:
            masks = -_grow(-masks, self.erode)
        if self.dilate:
            masks = _grow(masks, self.dilate)
        if self.blur:
            masks = gaussian_blur(masks, [self.blur_kernel] * 2, [self.blur] * 2)
        return masks.clamp(0, 1)


def _grow(masks: Tensor, side: int) -> Tensor:
    """Maximum over a window of `side` pixels, the border repeated. A window of an even side reaches one pixel further
    up and to the left, as published."""
    low = side // 2
    padded = F.pad(masks, (low, side - 1 - low, low, side - 1 - low), mode="replicate")
    return F.max_pool2d(padded, side, stride=1)
