"""Segment Anything, asked with points that lie spread over a cross-attention map (DiG-IN, D.1.5), or with boxes."""

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
from classifier_lens.models.segmenter.segmenter import joint_digest, resize_maps, to_uint8
from classifier_lens.runner.configuration.value_ranges import BelowOne, PerProblemCount
from classifier_lens.runner.types import UserError

# By the kind that a checkpoint's config.json names: the network, and what prepares its pictures. Checkpoints of SAM 2
# hold the part that follows objects through a video, too, and are named after it.
MODEL_CLASSES = {
    "sam": (SamModel, SamImageProcessor), "sam_hq": (SamHQModel, SamImageProcessor),
    "sam2": (Sam2Model, Sam2ImageProcessor), "sam2_video": (Sam2Model, Sam2ImageProcessor),
}  # fmt: skip


@dataclass(frozen=True)
class SamNetwork:
    """A Segment Anything network, asked about one picture: the encoder's attention at full size is large.

    processor: resizes and normalises pictures; forward_kwargs: of the network's call.
    """

    network: Any
    processor: SamImageProcessor | Sam2ImageProcessor
    forward_kwargs: Mapping[str, bool]

    def mask_at_points(self, image: Float[Tensor, "3 h w"], points: Int[Tensor, "n 2"]) -> Float[Tensor, "1 h w"]:
        """The mask of the object on which all points (row, column) lie."""
        given = self._prepared(image)
        # The network adds half a pixel to what it is given, so that centres of pixels fall on centres.
        places = (points.to(image.device) + 0.5) * _scale(given) - 0.5
        labels = torch.ones(1, 1, len(points), dtype=torch.int, device=image.device)
        return self._best(given, input_points=places.flip(-1)[None, None], input_labels=labels)

    def masks_in_boxes(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n h w"]:
        """The mask of each box's object; boxes: left, top, right and bottom in pixels."""
        given = self._prepared(image)
        return self._best(given, input_boxes=(boxes * _scale(given).flip(-1).repeat(2))[None])

    def _prepared(self, image: Float[Tensor, "3 h w"]) -> Any:
        return self.processor(to_uint8(image), input_data_format="channels_first", return_tensors="pt").to(image.device)

    @torch.no_grad()
    def _best(self, given: Any, **prompt: Tensor) -> Float[Tensor, "n h w"]:
        """For each thing that is asked the best mask by the network's own estimate, at the picture's size."""
        self.network.to(given["pixel_values"].device)
        answer = self.network(pixel_values=given["pixel_values"], **prompt, **self.forward_kwargs)
        masks, scores = answer.pred_masks[0], answer.iou_scores[0]
        # Asked for the high-quality token alone, the network gives one mask and still the scores of the others.
        best = scores.argmax(dim=1) if masks.shape[1] > 1 else torch.zeros_like(scores[:, 0], dtype=torch.long)
        chosen = masks[torch.arange(len(masks), device=masks.device), best, None]
        sizes = [given[key] for key in ("original_sizes", "reshaped_input_sizes") if key in given]
        return self.processor.post_process_masks([chosen], *sizes)[0][:, 0].float()


def _scale(given: Any) -> Float[Tensor, " 2"]:
    """Rows and columns of what the network sees of a prepared picture, per row and column of the picture."""
    pixels = given["pixel_values"]
    seen = given["reshaped_input_sizes"][0] if "reshaped_input_sizes" in given else torch.tensor(pixels.shape[-2:])
    return seen.to(pixels) / given["original_sizes"][0].to(pixels)


@dataclass(frozen=True)
class SamSegmenter:
    """The best mask for `num_points` points on a map above `threshold`, none where nothing lies above it.

    Points are sampled in proportion to `squashed(map, background)`; background_threshold, threshold: shares of the
    map's maximum, in [0, 1).
    """

    sam: SamNetwork
    num_points: int
    background_threshold: float
    threshold: float
    needs_attention_map: ClassVar[bool] = True

    @property
    def digest(self) -> str:
        """Of the weights, and of how pictures are prepared for them."""
        return joint_digest([self.sam.network], self.sam.processor.to_json_string())

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], words: Sequence[str],
        names: Sequence[str],
    ) -> Float[Tensor, "b 1 h w"]:  # fmt: skip
        large = resize_maps(maps, images)[:, 0]
        weights = torch.where(large > self.threshold, point_weights(large, self.background_threshold), 0)
        chosen = [
            sample_distant_points(w, self.num_points, zlib.crc32(name.encode()))
            for w, name in zip(weights, names, strict=True)
        ]
        masks = [
            self.sam.mask_at_points(image, points) if len(points) else torch.zeros_like(image[:1])
            for image, points in zip(images, chosen, strict=True)
        ]
        return torch.stack(masks).to(images)


def point_weights(maps: Float[Tensor, "b h w"], background_threshold: float) -> Float[Tensor, "b h w"]:
    """What of a map lies above the background, stretched to [0, 1], and its square root, which lifts weak parts: as
    published, the cut comes before the root."""
    return ((maps - background_threshold).clamp(min=0) / (1 - background_threshold)).sqrt()


def sample_distant_points(weights: Float[Tensor, "h w"], count: int, seed: int) -> Int[Tensor, "n 2"]:
    """Up to `count` different pixels (row, column) with positive weight, drawn so that they lie apart.

    The first is drawn in proportion to the weights, each further one in proportion to the weight times the squared
    distance to the nearest point drawn before (Arthur and Vassilvitskii, 2007, Section 2.2). Fewer come back where
    fewer pixels have a weight. Follows from the weights and the seed alone.
    """
    places = weights.nonzero().cpu()
    mass = weights[weights != 0].double().cpu()
    generator = torch.Generator().manual_seed(seed)
    apart = torch.full_like(mass, torch.inf)
    points: list[Tensor] = []
    while len(points) < min(count, len(places)):
        chances = mass * apart if points else mass
        points.append(places[torch.multinomial(chances, 1, generator=generator)[0]])
        apart = torch.minimum(apart, (places - points[-1]).double().square().sum(dim=1))
    return torch.stack(points) if points else places[:0]


# --- weights -------------------------------------------------------------------------------------------------


def load(
    path: str,
    revision: str | None,
    num_points: PerProblemCount,
    background_threshold: BelowOne,
    threshold: BelowOne,
    forward_kwargs: Mapping[str, bool],
) -> SamSegmenter:
    """A segmenter from a Segment Anything network; see `load_sam`, and `SamSegmenter` for the other settings.

    Raises UserError if weights are missing or of another kind, or if a setting is not allowed.
    """
    return SamSegmenter(load_sam(path, revision, forward_kwargs), num_points, background_threshold, threshold)


def load_sam(path: str, revision: str | None, forward_kwargs: Mapping[str, bool]) -> SamNetwork:
    """A Segment Anything network, plain, in high quality or of the second generation, in float32.

    path: a folder in transformers' layout, or a hub id whose files are in the hub's cache at `revision`.
    Raises UserError if weights are missing or of another kind, or if the network has no such option.
    """
    key = f"segmenter.path={path}"
    folder = local_folder(key, path, revision)
    kind = read_model_type(key, folder, MODEL_CLASSES)
    network_class, processor_class = MODEL_CLASSES[kind]
    with as_user_error(key):
        processor = processor_class.from_pretrained(folder)
    known = inspect.signature(network_class.forward).parameters
    if unknown := [name for name in forward_kwargs if name not in known]:
        raise UserError(f"segmenter.forward_kwargs={', '.join(unknown)}: a network of kind {kind} has no such option")
    return SamNetwork(load_frozen(key, folder, network_class, torch.float32), processor, forward_kwargs)
