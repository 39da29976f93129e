"""Grounded SAM by the authors' packages, `groundingdino-py` and `segment-anything`, with their published weights.

`groundingdino-py` needs transformers below 5, so the packages are installed in a separate environment
(`make test-groundingdino`). `models.segmenter.grounded_sam` uses the implementations of transformers.
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
from classifier_lens.models.image_conversion import to_uint8_array
from classifier_lens.models.network_digest import joint_digest
from classifier_lens.models.segmenter.segmenter import BoxPromptedSegmenter, grounding_dino_prompt
from classifier_lens.runner.configuration.value_ranges import BelowOne
from classifier_lens.runner.types import UserError, first_line

MIN_SIDE, MAX_SIDE = 800, 1333  # pixels; the shorter side is resized to the first unless the longer exceeds the second
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class OriginalGroundedSam(BoxPromptedSegmenter):
    """See `models.segmenter.grounded_sam.GroundedSam`; the predictor of segment-anything takes one image at a time."""

    detector: Any
    predictor: Any
    box_threshold: float
    text_threshold: float
    digest: str

    def detect_boxes(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "n 4"]:
        from groundingdino.datasets import transforms
        from groundingdino.util.inference import predict

        preprocess = transforms.Compose([
            transforms.RandomResize([MIN_SIDE], max_size=MAX_SIDE), transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip
        preprocessed, _ = preprocess(Image.fromarray(to_uint8_array(image)), None)
        relative_boxes, _, phrases = predict(
            self.detector,
            preprocessed,
            grounding_dino_prompt(words),
            self.box_threshold,
            self.text_threshold,
            device=str(image.device),
        )
        with_phrase = [i for i, phrase in enumerate(phrases) if phrase.strip()]
        height, width = image.shape[-2:]
        boxes = relative_boxes[with_phrase] * torch.tensor([width, height, width, height])
        return box_convert(boxes, "cxcywh", "xyxy").to(image.device)

    @torch.no_grad()
    def masks_in_boxes(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n h w"]:
        self.predictor.model.to(image.device)
        self.predictor.set_image(to_uint8_array(image))
        scaled_boxes = self.predictor.transform.apply_boxes_torch(boxes, image.shape[-2:])
        masks, _, _ = self.predictor.predict_torch(
            point_coords=None, point_labels=None, boxes=scaled_boxes, multimask_output=False
        )
        return masks[:, 0].float()


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

    Args:
        detector_config: a configuration of groundingdino's package: GroundingDINO_SwinT_OGC or GroundingDINO_SwinB_cfg.
        detector_weights: the published .pth file of the detector.
        text_encoder: BERT, a folder in transformers' layout, or a hub id whose files are in the hub's cache at
            `text_encoder_revision`.
        sam_model_type: vit_b, vit_l or vit_h.
        sam_weights: the published .pth file of the Segment Anything network.

    Raises:
        UserError: a package or weights are missing, or a setting is not allowed.
    """
    try:
        import groundingdino
        from groundingdino.models import build_model
        from groundingdino.util.misc import clean_state_dict
        from groundingdino.util.slconfig import SLConfig
        from segment_anything import SamPredictor, sam_model_registry
    except ImportError as error:
        raise UserError(
            f"segmenter=grounded_sam_original: {first_line(error)}; its packages are the extra `groundingdino`, which "
            "needs a separate environment (`make test-groundingdino`); `segmenter=grounded_sam` does not need them"
        ) from error
    # A configuration is a Python module, so only those of the package are run.
    config_files = {path.stem: path for path in Path(groundingdino.__file__).parent.glob("config/Grounding*.py")}
    if (config_file := config_files.get(detector_config)) is None:
        raise UserError(
            f"segmenter.detector_config={detector_config}: allowed are those of the package, "
            f"{', '.join(sorted(config_files))}"
        )
    if sam_model_type not in sam_model_registry:
        raise UserError(
            f"segmenter.sam_model_type={sam_model_type}: allowed are {', '.join(sorted(sam_model_registry))}"
        )
    detector_checkpoint = _read_checkpoint("detector_weights", detector_weights)
    sam_checkpoint = _read_checkpoint("sam_weights", sam_weights)
    settings = SLConfig.fromfile(str(config_file))
    settings.device = "cpu"
    folder = local_folder(f"segmenter.text_encoder={text_encoder}", text_encoder, text_encoder_revision)
    settings.text_encoder_type = str(folder)
    detector, sam = build_model(settings), sam_model_registry[sam_model_type]()
    detector_state = detector_checkpoint.get("model", {}) if isinstance(detector_checkpoint, Mapping) else {}
    _load_weights(detector, clean_state_dict(detector_state), f"segmenter.detector_weights={detector_weights}")
    _load_weights(sam, sam_checkpoint, f"segmenter.sam_weights={sam_weights}")
    digest = joint_digest([detector, sam], detector_config, sam_model_type, box_threshold, text_threshold)
    return OriginalGroundedSam(detector, SamPredictor(sam), box_threshold, text_threshold, digest)


def _read_checkpoint(key: str, path: str) -> Any:
    """The content of a .pth file; code in it is not run. Raises UserError if it cannot be read."""
    wanted = "expected the published .pth file, see `python scripts/fetch_weights.py list`"
    if not Path(path).expanduser().is_file():
        raise missing_weights_error(f"segmenter.{key}={path}", "cannot be loaded (no such file)", wanted)
    try:
        return torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"segmenter.{key}={path}: cannot be loaded ({first_line(error)}); {wanted}") from error


def _load_weights(network: nn.Module, state: Mapping[str, Tensor], key: str) -> None:
    """Load the weights of a network and freeze it. Raises UserError if one is missing or has another shape."""
    try:
        missing = network.load_state_dict(state, strict=False).missing_keys
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{key}: contains the weights of another network ({first_line(error)})") from error
    if missing:
        raise UserError(f"{key}: {len(missing)} weights are missing, such as {missing[0]}")
    network.requires_grad_(False).eval()
