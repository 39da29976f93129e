"""Grounded SAM by its authors' packages, `groundingdino-py` and `segment-anything`, on the files that they publish.

The first runs with transformers below 5 only, so the two have an environment of their own: `make test-groundingdino`.
`models.segmenter.grounded_sam` does the same by transformers' copies.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_convert

from classifier_lens.models.hub import local_folder, missing_weights_error
from classifier_lens.models.segmenter.segmenter import (
    BoxPromptedSegmenter,
    grounding_dino_prompt,
    joint_digest,
    to_uint8,
)
from classifier_lens.runner.configuration.value_ranges import BelowOne
from classifier_lens.runner.types import UserError, first_line

MIN_SIDE, LONGEST = 800, 1333  # side in pixels that the detector's pictures are brought to, and the limit of the other
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class OriginalGroundedSam(BoxPromptedSegmenter):
    """See `models.segmenter.grounded_sam.GroundedSam`. predictor: of segment-anything, about one picture at a time."""

    detector: Any
    predictor: Any
    box_threshold: float
    text_threshold: float
    digest: str

    def detect_boxes(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "n 4"]:
        """Around what the words name: left, top, right and bottom in pixels."""
        from groundingdino.datasets import transforms
        from groundingdino.util.inference import predict

        prepare = transforms.Compose([
            transforms.RandomResize([MIN_SIDE], max_size=LONGEST), transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip
        given, _ = prepare(Image.fromarray(_pixels(image)), None)
        shares, _, phrases = predict(
            self.detector,
            given,
            grounding_dino_prompt(words),
            self.box_threshold,
            self.text_threshold,
            device=str(image.device),
        )
        named = [i for i, phrase in enumerate(phrases) if phrase.strip()]
        height, width = image.shape[-2:]
        pixels = shares[named] * torch.tensor([width, height, width, height])
        return box_convert(pixels, "cxcywh", "xyxy").to(image.device)

    @torch.no_grad()
    def masks_in_boxes(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n h w"]:
        """The mask of each box's object."""
        self.predictor.model.to(image.device)
        self.predictor.set_image(_pixels(image))
        places = self.predictor.transform.apply_boxes_torch(boxes, image.shape[-2:])
        masks, _, _ = self.predictor.predict_torch(
            point_coords=None, point_labels=None, boxes=places, multimask_output=False
        )
        return masks[:, 0].float()


def _pixels(image: Float[Tensor, "3 h w"]) -> Any:
    """A picture as an array of rows, columns and channels."""
    return to_uint8(image).permute(1, 2, 0).cpu().numpy()


# --- weights -------------------------------------------------------------------------------------------------


def load(
    detector_config: str,
    detector_weights: str,
    text_encoder: str,
    text_encoder_revision: str | None,
    box_threshold: BelowOne,
    text_threshold: BelowOne,
    sam_model_type: str,
    sam_weights: str,
) -> OriginalGroundedSam:
    """Both networks in float32; see `models.segmenter.grounded_sam.GroundedSam` for the thresholds.

    detector_config: the detector's, one that its package brings (GroundingDINO_SwinT_OGC, GroundingDINO_SwinB_cfg) or a
    file of that kind, whose code is run; detector_weights: its published .pth file; text_encoder: BERT, a folder in
    transformers' layout or a hub id whose files are in the hub's cache at that revision; sam_model_type: vit_b, vit_l
    or vit_h; sam_weights: the published .pth file. Raises UserError if a package or weights are missing, or if a
    setting is not allowed."""
    try:
        import groundingdino
        from groundingdino.models import build_model
        from groundingdino.util.misc import clean_state_dict
        from groundingdino.util.slconfig import SLConfig
        from segment_anything import SamPredictor, sam_model_registry
    except ImportError as error:
        raise UserError(
            f"segmenter=grounded_sam_original: {first_line(error)}; its packages are the extra `groundingdino`, which "
            "needs an environment of its own (`make test-groundingdino`); `segmenter=grounded_sam` does without them"
        ) from error
    brought = {path.stem: path for path in Path(groundingdino.__file__).parent.glob("config/Grounding*.py")}
    if (file := brought.get(detector_config)) is None:  # a configuration is a module: only the package's own are run
        raise UserError(
            f"segmenter.detector_config={detector_config}: allowed are the package's own, {', '.join(sorted(brought))}"
        )
    if sam_model_type not in sam_model_registry:
        raise UserError(
            f"segmenter.sam_model_type={sam_model_type}: allowed are {', '.join(sorted(sam_model_registry))}"
        )
    states = {key: _read(key, path) for key, path in (("weights", detector_weights), ("sam_weights", sam_weights))}
    settings = SLConfig.fromfile(str(file))
    settings.device = "cpu"
    folder = local_folder(f"segmenter.text_encoder={text_encoder}", text_encoder, text_encoder_revision)
    settings.text_encoder_type = str(folder)
    detector, segment_anything = build_model(settings), sam_model_registry[sam_model_type]()
    inner = states["weights"].get("model", {}) if isinstance(states["weights"], Mapping) else {}
    _fill(detector, clean_state_dict(inner), f"segmenter.detector_weights={detector_weights}")
    _fill(segment_anything, states["sam_weights"], f"segmenter.sam_weights={sam_weights}")
    digest = joint_digest([detector, segment_anything], detector_config, sam_model_type, box_threshold, text_threshold)
    return OriginalGroundedSam(detector, SamPredictor(segment_anything), box_threshold, text_threshold, digest)


def _read(key: str, path: str) -> Any:
    """What a .pth file holds, tensors alone. Raises UserError if it cannot be read."""
    wanted = "wanted is the published .pth file, see `python scripts/fetch_weights.py list`"
    if not Path(path).expanduser().is_file():
        raise missing_weights_error(f"segmenter.{key}={path}", "cannot be loaded (no such file)", wanted)
    try:
        return torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"segmenter.{key}={path}: cannot be loaded ({first_line(error)}); {wanted}") from error


def _fill(network: nn.Module, state: Mapping[str, Tensor], key: str) -> None:
    """Weights into a network, frozen and in evaluation mode. Raises UserError if one is missing or of another shape."""
    try:
        missing = network.load_state_dict(state, strict=False).missing_keys
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{key}: holds the weights of another network ({first_line(error)})") from error
    if missing:
        raise UserError(f"{key}: {len(missing)} weights are missing, such as {missing[0]}")
    network.requires_grad_(False).eval()
