"""Segment Anything, prompted with points sampled from a cross-attention map (DiG-IN, D.1.5) or with boxes."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Sam2ImageProcessor, Sam2Model, SamHQModel, SamImageProcessor, SamModel

from classifier_lens.models.hub import as_user_error, load_frozen, local_folder, read_model_type
from classifier_lens.models.image_conversion import to_uint8
from classifier_lens.models.network_digest import joint_digest
from classifier_lens.models.segmenter.segmenter import resize_maps
from classifier_lens.runner.configuration.value_ranges import BelowOne, PerProblemCount
from classifier_lens.runner.types import UserError

# `model_type` in config.json -> network class and image processor class. Published checkpoints of SAM 2 include the
# video tracker and have its type.
MODEL_CLASSES = {
    "sam": (SamModel, SamImageProcessor), "sam_hq": (SamHQModel, SamImageProcessor),
    "sam2": (Sam2Model, Sam2ImageProcessor), "sam2_video": (Sam2Model, Sam2ImageProcessor),
}  # fmt: skip


@dataclass(frozen=True)
class SamNetwork:
    """A Segment Anything network that takes one image per call, since the attention of its encoder is large.

    Args:
        processor: resizes and normalizes images.
        forward_kwargs: further arguments of the network's call.
    """

    network: Any
    processor: SamImageProcessor | Sam2ImageProcessor
    forward_kwargs: Mapping[str, bool]

    def mask_at_points(self, image: Float[Tensor, "3 h w"], points: Int[Tensor, "n 2"]) -> Float[Tensor, "1 h w"]:
        """The mask of the object that contains all points (row, column)."""
        inputs = self._preprocess(image)
        # The network adds half a pixel to points, so pixel centers are mapped to pixel centers here.
        scaled_points = (points.to(image.device) + 0.5) * _resize_factors(inputs) - 0.5
        labels = torch.ones(1, 1, len(points), dtype=torch.int, device=image.device)
        return self._best_masks(inputs, input_points=scaled_points.flip(-1)[None, None], input_labels=labels)

    def masks_in_boxes(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n h w"]:
        """The mask of the object in each box (left, top, right, bottom), in pixels."""
        inputs = self._preprocess(image)
        return self._best_masks(inputs, input_boxes=(boxes * _resize_factors(inputs).flip(-1).repeat(2))[None])

    def _preprocess(self, image: Float[Tensor, "3 h w"]) -> Any:
        return self.processor(to_uint8(image), input_data_format="channels_first", return_tensors="pt").to(image.device)

    @torch.no_grad()
    def _best_masks(self, inputs: Any, **prompts: Tensor) -> Float[Tensor, "n h w"]:
        """For each prompt the mask with the highest IoU that the network predicts, at the size of the image."""
        self.network.to(inputs["pixel_values"].device)
        output = self.network(pixel_values=inputs["pixel_values"], **prompts, **self.forward_kwargs)
        masks, scores = output.pred_masks[0], output.iou_scores[0]
        # With the high-quality token alone, the network returns one mask but the scores of all.
        best = scores.argmax(dim=1) if masks.shape[1] > 1 else torch.zeros_like(scores[:, 0], dtype=torch.long)
        best_masks = masks[torch.arange(len(masks), device=masks.device), best, None]
        sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        return self.processor.post_process_masks([best_masks], *sizes)[0][:, 0].float()


def _resize_factors(inputs: Any) -> Float[Tensor, " 2"]:
    """Height and width of the network's input, without padding, relative to those of the image."""
    pixels = inputs["pixel_values"]
    size = inputs["reshaped_input_sizes"][0] if "reshaped_input_sizes" in inputs else torch.tensor(pixels.shape[-2:])
    return size.to(pixels) / inputs["original_sizes"][0].to(pixels)


@dataclass(frozen=True)
class SamSegmenter:
    """The mask for points that are sampled from the cross-attention map; empty if no map value exceeds `threshold`.

    Args:
        num_points: number of points, sampled in proportion to `point_weights`.
        background_threshold: map values up to it have weight 0; a fraction of the map's maximum, in [0, 1).
        threshold: points lie where the map exceeds it; a fraction of the map's maximum, in [0, 1).
    """

    sam: SamNetwork
    num_points: int
    background_threshold: float
    threshold: float
    needs_attention_map: ClassVar[bool] = True

    @property
    def digest(self) -> str:
        """SHA-256 of the weights and of the image preprocessing."""
        return joint_digest([self.sam.network], self.sam.processor.to_json_string())

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        resized_maps = resize_maps(maps, images)[:, 0]
        weights = torch.where(resized_maps > self.threshold, point_weights(resized_maps, self.background_threshold), 0)
        points_per_image = [
            sample_distant_points(w, self.num_points, zlib.crc32(name.encode()))
            for w, name in zip(weights, names, strict=True)
        ]
        masks = [
            self.sam.mask_at_points(image, points) if len(points) else torch.zeros_like(image[:1])
            for image, points in zip(images, points_per_image, strict=True)
        ]
        return torch.stack(masks).to(images)


def point_weights(maps: Float[Tensor, "b h w"], background_threshold: float) -> Float[Tensor, "b h w"]:
    """sqrt(max(map - b, 0) / (1 - b)) for the background threshold b; the root raises low values, as published."""
    return ((maps - background_threshold).clamp(min=0) / (1 - background_threshold)).sqrt()


def sample_distant_points(weights: Float[Tensor, "h w"], count: int, seed: int) -> Int[Tensor, "n 2"]:
    """Up to `count` different pixels (row, column) of positive weight that are far from each other.

    The first point is sampled in proportion to the weights, each further one in proportion to its weight times the
    squared distance to the nearest previous point (k-means++, Arthur and Vassilvitskii, 2007, Section 2.2).
    The result depends on the weights and the seed alone.
    """
    pixels = weights.nonzero().cpu()
    pixel_weights = weights[weights != 0].double().cpu()
    generator = torch.Generator().manual_seed(seed)
    squared_distances = torch.full_like(pixel_weights, torch.inf)
    points: list[Tensor] = []
    while len(points) < min(count, len(pixels)):
        probabilities = pixel_weights * squared_distances if points else pixel_weights
        points.append(pixels[torch.multinomial(probabilities, 1, generator=generator)[0]])
        squared_distances = torch.minimum(squared_distances, (pixels - points[-1]).double().square().sum(dim=1))
    return torch.stack(points) if points else pixels[:0]


def load(
    path: str,
    revision: str | None,
    num_points: PerProblemCount,
    background_threshold: BelowOne,
    threshold: BelowOne,
    forward_kwargs: Mapping[str, bool],
) -> SamSegmenter:
    """A segmenter that prompts a Segment Anything network with points; see `load_sam` and `SamSegmenter`."""
    return SamSegmenter(load_sam(path, revision, forward_kwargs), num_points, background_threshold, threshold)


def load_sam(path: str, revision: str | None, forward_kwargs: Mapping[str, bool]) -> SamNetwork:
    """A SAM, HQ-SAM or SAM 2 network in float32.

    Args:
        path: a folder in transformers' layout, or a hub id whose files are in the hub's cache at `revision`.

    Raises:
        UserError: the weights are missing or of another architecture, or the network has no such argument.
    """
    key = f"segmenter.path={path}"
    folder = local_folder(key, path, revision)
    model_type = read_model_type(key, folder, MODEL_CLASSES)
    network_class, processor_class = MODEL_CLASSES[model_type]
    with as_user_error(key):
        processor = processor_class.from_pretrained(folder)
    parameters = inspect.signature(network_class.forward).parameters
    if unknown := [name for name in forward_kwargs if name not in parameters]:
        raise UserError(f"segmenter.forward_kwargs={', '.join(unknown)}: {model_type} networks have no such argument")
    return SamNetwork(load_frozen(key, folder, network_class, torch.float32), processor, forward_kwargs)
