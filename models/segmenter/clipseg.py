"""Text-prompted masks by CLIPSeg (Lüddecke and Ecker, 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from classifier_lens.models.captioner.captioner import fill_template
from classifier_lens.models.hub import as_user_error, load_frozen, local_folder, read_model_type
from classifier_lens.models.image_conversion import to_uint8
from classifier_lens.models.network_digest import joint_digest
from classifier_lens.models.segmenter.segmenter import TextPromptedSegmenter
from classifier_lens.runner.configuration.value_ranges import BelowOne
from classifier_lens.runner.types import UserError, indefinite_article

MODEL_TYPE = "clipseg"  # `model_type` in config.json


@dataclass(frozen=True)
class ClipSegSegmenter(TextPromptedSegmenter):
    """The thresholded probability of CLIPSeg.

    Args:
        processor: resizes and normalizes images and tokenizes texts.
        threshold: a pixel belongs to the mask where the probability, resized to the image, exceeds it; in [0, 1).
        template: the text prompt with the placeholders `{words}` and `{article}`.
    """

    network: CLIPSegForImageSegmentation
    processor: CLIPSegProcessor
    threshold: float
    template: str
    digest: str

    @torch.no_grad()
    def mask(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "1 h w"]:
        """1 where the image shows the object that the words name, else 0. Raises UserError for a prompt that is too
        long."""
        self.network.to(image.device)
        text = fill_text_template(self.template, words)
        inputs = self.processor(
            text=[text], images=[to_uint8(image)], input_data_format="channels_first", return_tensors="pt"
        ).to(image.device)  # fmt: skip
        length, max_length = inputs["input_ids"].shape[1], self.network.config.text_config.max_position_embeddings
        if length > max_length:
            raise UserError(f"segmenter.template: '{text}' has {length} tokens; the network reads {max_length}")
        probability = self.network(**inputs).logits.sigmoid()
        resized = F.interpolate(probability[None], size=image.shape[-2:], mode="bilinear", align_corners=False)
        return (resized[0] > self.threshold).float()


def fill_text_template(template: str, words: str) -> str:
    """The text prompt for some words.

    `{article}` is empty where the words begin with an article or end with the s of a plural. Raises UserError for
    placeholders other than `{words}` and `{article}`.
    """
    first_word, *_ = words.lower().split() or [""]
    is_plural = words.endswith("s") and not words.endswith("ss")
    article = "" if first_word in ("a", "an", "the") or is_plural else indefinite_article(words)
    return fill_template("segmenter.template", template, words=words, article=article)


def load(path: str, revision: str | None, threshold: BelowOne, template: str) -> ClipSegSegmenter:
    """A CLIPSeg segmenter in float32; see `ClipSegSegmenter` for the other settings.

    Args:
        path: a folder in transformers' layout, or a hub id whose files are in the hub's cache at `revision`.

    Raises:
        UserError: the weights are missing or of another architecture, or the template lacks `{words}`.
    """
    key = f"segmenter.path={path}"
    if "{words}" not in template:
        raise UserError(f"segmenter.template={template}: the placeholder {{words}} for the object is missing")
    fill_text_template(template, "words")
    folder = local_folder(key, path, revision)
    read_model_type(key, folder, [MODEL_TYPE])
    with as_user_error(key):
        processor = CLIPSegProcessor.from_pretrained(folder)
    network = load_frozen(key, folder, CLIPSegForImageSegmentation, torch.float32)
    digest = joint_digest([network], processor.image_processor.to_json_string(), threshold, template)
    return ClipSegSegmenter(network, processor, threshold, template, digest)
