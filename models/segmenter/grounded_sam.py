"""Grounded SAM (Ren et al., 2024): Grounding DINO puts boxes around what a text names (Liu et al., 2023), and Segment
Anything finds the object in each box; the language-driven segmentation of DiffExplainer, Section 3.3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

from classifier_lens.models.hub import as_user_error, load_frozen, local_folder, read_model_type
from classifier_lens.models.segmenter.sam import SamNetwork, load_sam
from classifier_lens.models.segmenter.segmenter import (
    BoxPromptedSegmenter,
    grounding_dino_prompt,
    joint_digest,
    to_uint8,
)
from classifier_lens.runner.configuration.value_ranges import BelowOne

KIND = "grounding-dino"  # as a checkpoint's config.json names it


@dataclass(frozen=True)
class GroundedSam(BoxPromptedSegmenter):
    """A box's score is that of the token it fits best. It counts where this exceeds `box_threshold`, and the score of a
    token of the words `text_threshold`; both in [0, 1].

    processor: resizes and normalises pictures and cuts texts into tokens.
    """

    detector: GroundingDinoForObjectDetection
    processor: GroundingDinoProcessor
    box_threshold: float
    text_threshold: float
    sam: SamNetwork
    digest: str

    @torch.no_grad()
    def detect_boxes(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "n 4"]:
        """Around what the words name: left, top, right and bottom in pixels."""
        self.detector.to(image.device)
        given = self.processor(
            images=to_uint8(image),
            text=grounding_dino_prompt(words),
            input_data_format="channels_first",
            return_tensors="pt",
        ).to(image.device)
        found = self.processor.post_process_grounded_object_detection(
            self.detector(**given), given["input_ids"], threshold=self.box_threshold,
            text_threshold=self.text_threshold, target_sizes=[tuple(image.shape[-2:])],
        )[0]  # fmt: skip
        named = [i for i, label in enumerate(found["text_labels"]) if label.strip(" .")]
        return found["boxes"][named]

    def masks_in_boxes(self, image: Float[Tensor, "3 h w"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n h w"]:
        """The mask of each box's object."""
        return self.sam.masks_in_boxes(image, boxes)


def load(
    detector: str, detector_revision: str | None, box_threshold: BelowOne, text_threshold: BelowOne, path: str,
    revision: str | None, forward_kwargs: Mapping[str, bool],
) -> GroundedSam:  # fmt: skip
    """Grounding DINO and a Segment Anything network, both in float32; see `GroundedSam` for the thresholds.

    detector, path: folders in transformers' layout, or hub ids whose files are in the hub's cache at their revision;
    forward_kwargs: of the Segment Anything network's call.
    Raises UserError if weights are missing or of another kind, or if a setting is not allowed.
    """
    key = f"segmenter.detector={detector}"
    folder = local_folder(key, detector, detector_revision)
    read_model_type(key, folder, [KIND])
    with as_user_error(key):
        processor = GroundingDinoProcessor.from_pretrained(folder)
    network = load_frozen(key, folder, GroundingDinoForObjectDetection, torch.float32)
    sam = load_sam(path, revision, forward_kwargs)
    recipes = [each.to_json_string() for each in (processor.image_processor, sam.processor)]
    digest = joint_digest(
        [network, sam.network], *recipes, box_threshold, text_threshold, sorted(forward_kwargs.items())
    )
    return GroundedSam(network, processor, box_threshold, text_threshold, sam, digest)
