"""Grounded SAM (Ren et al., 2024), the language-driven segmentation of DiffExplainer, Section 3.3.

Grounding DINO (Liu et al., 2023) detects the boxes of a text prompt, Segment Anything segments the object in each box.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

from classifier_lens.models.hub import as_user_error, load_frozen, local_folder, read_model_type
from classifier_lens.models.image_conversion import to_uint8
from classifier_lens.models.network_digest import joint_digest
from classifier_lens.models.segmenter.sam import SamNetwork, load_sam
from classifier_lens.models.segmenter.segmenter import BoxPromptedSegmenter, grounding_dino_prompt
from classifier_lens.runner.configuration.value_ranges import BelowOne

MODEL_TYPE = "grounding-dino"  # `model_type` in config.json


@dataclass(frozen=True)
class GroundedSam(BoxPromptedSegmenter):
    """Grounding DINO and a Segment Anything network.

    Args:
        processor: resizes and normalizes images and tokenizes texts.
        box_threshold: a box is used if the highest score of its tokens exceeds it; in [0, 1).
        text_threshold: a box is used if the score of a token of the words exceeds it; in [0, 1).
    """

    detector: GroundingDinoForObjectDetection
    processor: GroundingDinoProcessor
    box_threshold: float
    text_threshold: float
    sam: SamNetwork
    digest: str

    @torch.no_grad()
    def detect_boxes(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "n 4"]:
        self.detector.to(image.device)
        inputs = self.processor(
            images=to_uint8(image),
            text=grounding_dino_prompt(words),
            input_data_format="channels_first",
            return_tensors="pt",
        ).to(image.device)
        detections = self.processor.post_process_grounded_object_detection(
            self.detector(**inputs), inputs["input_ids"], threshold=self.box_threshold,
            text_threshold=self.text_threshold, target_sizes=[tuple(image.shape[-2:])],
        )[0]  # fmt: skip
        with_label = [i for i, label in enumerate(detections["text_labels"]) if label.strip(" .")]
        return detections["boxes"][with_label]

    def masks_in_boxes(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n h w"]:
        return self.sam.masks_in_boxes(image, boxes)


def load(
    detector: str, detector_revision: str | None, box_threshold: BelowOne, text_threshold: BelowOne, path: str,
    revision: str | None, forward_kwargs: Mapping[str, bool],
) -> GroundedSam:  # fmt: skip
    """Grounding DINO and a Segment Anything network, both in float32; see `GroundedSam` for the thresholds.

    Args:
        detector: Grounding DINO, a folder in transformers' layout, or a hub id whose files are in the hub's cache at
            `detector_revision`.
        path: the Segment Anything network, likewise, at `revision`.
        forward_kwargs: further arguments of the Segment Anything network's call.

    Raises:
        UserError: weights are missing or of another architecture.
    """
    key = f"segmenter.detector={detector}"
    folder = local_folder(key, detector, detector_revision)
    read_model_type(key, folder, [MODEL_TYPE])
    with as_user_error(key):
        processor = GroundingDinoProcessor.from_pretrained(folder)
    network = load_frozen(key, folder, GroundingDinoForObjectDetection, torch.float32)
    sam = load_sam(path, revision, forward_kwargs)
    preprocessing = [part.to_json_string() for part in (processor.image_processor, sam.processor)]
    digest = joint_digest(
        [network, sam.network], *preprocessing, box_threshold, text_threshold, sorted(forward_kwargs.items())
    )
    return GroundedSam(network, processor, box_threshold, text_threshold, sam, digest)
