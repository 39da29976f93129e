"""Masks by Segment Anything, asked with points that lie spread over a cross-attention map (DiG-IN, D.1.5)."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, SamHQModel, SamImageProcessor, SamModel

from models.hub import load_frozen, local_folder, one_line
from models.segment import enlarged
from runner.types import UserError

NETWORKS = {"sam": SamModel, "sam_hq": SamHQModel}  # by the kind that a checkpoint's config.json names


@dataclass(frozen=True)
class SamSegmenter:
    """The best mask, by the network's own estimate, for `points` points on a map above `threshold` (in [0, 1]).

    processor: resizes, normalises and pads pictures; `square_root` lifts weak parts of the map before the cut;
    options: of the network's call. A map with nothing above the threshold gives an empty mask.
    """

    network: Any
    processor: SamImageProcessor
    points: int
    threshold: float
    square_root: bool
    options: Mapping[str, bool]

    def __call__(
        self, images: Float[Tensor, "b 3 h w"], maps: Float[Tensor, "b 1 y x"], names: Sequence[str]
    ) -> Float[Tensor, "b 1 h w"]:
        large = enlarged(maps, images)[:, 0]
        weights = large.sqrt() if self.square_root else large
        weights = torch.where(weights > self.threshold, weights, 0)
        chosen = [
            spread_points(w, self.points, zlib.crc32(name.encode())) for w, name in zip(weights, names, strict=True)
        ]
        self.network.to(images.device)
        # One picture at a time: the encoder's attention at full size is large, and no mask depends on the batch.
        return torch.stack([self._mask(image, p) for image, p in zip(images, chosen, strict=True)]).to(images)

    @torch.no_grad()
    def _mask(self, image: Float[Tensor, "3 h w"], points: Int[Tensor, "n 2"]) -> Float[Tensor, "1 h w"]:
        """One picture's mask for points (row, column)."""
        if not len(points):
            return torch.zeros_like(image[:1])
        given = self.processor(
            image.float(), do_rescale=False, input_data_format="channels_first", return_tensors="pt"
        )  # fmt: skip
        size, resized = given["original_sizes"], given["reshaped_input_sizes"]
        # The network adds half a pixel to what it is given, so that centres of pixels fall on centres.
        places = (points + 0.5) * (resized[0] / size[0]) - 0.5
        answer = self.network(
            pixel_values=given["pixel_values"].to(image.device),
            input_points=places.flip(-1)[None, None].to(image.device, torch.float32),
            input_labels=torch.ones(1, 1, len(points), dtype=torch.int, device=image.device),
            **self.options,
        )
        masks, scores = answer.pred_masks, answer.iou_scores[0, 0]
        # Asked for the high-quality token alone, the network gives one mask and still the scores of the others.
        best = 0 if masks.shape[2] == 1 else int(scores.argmax())
        return self.processor.post_process_masks(masks[:, :, best : best + 1], size, resized)[0][0].float()


def spread_points(weights: Float[Tensor, "h w"], count: int, seed: int) -> Int[Tensor, "n 2"]:
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
    path: str, revision: str | None, points: int, threshold: float, square_root: bool, options: Mapping[str, bool]
) -> SamSegmenter:
    """A Segment Anything network, plain or in high quality, in float32; see `SamSegmenter` for the other settings.

    path: a folder in transformers' layout, or a hub id whose files are in the hub's cache at `revision`.
    Raises UserError if weights are missing or of another kind, or if a setting is not allowed.
    """
    key = f"segmenter.path={path}"
    if points < 1:
        raise UserError(f"segmenter.points={points}: allowed are 1 and above")
    folder = local_folder(key, path, revision)
    with one_line(key):
        kind = AutoConfig.from_pretrained(folder).model_type
        processor = SamImageProcessor.from_pretrained(folder)
    if kind not in NETWORKS:
        raise UserError(f"{key}: holds a network of kind {kind}; allowed are {', '.join(NETWORKS)}")
    known = inspect.signature(NETWORKS[kind].forward).parameters
    if unknown := [name for name in options if name not in known]:
        raise UserError(f"segmenter.options={', '.join(unknown)}: a network of kind {kind} has no such option")
    network = load_frozen(key, folder, NETWORKS[kind], torch.float32)
    return SamSegmenter(network, processor, points, threshold, square_root, options)
