"""CLIPSeg (Lüddecke and Ecker, 2022): where a picture shows what a text says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from classifier_lens.models.captioner.captioner import fill_template
from classifier_lens.models.hub import as_user_error, load_frozen, local_folder, read_model_type
from classifier_lens.models.segmenter.segmenter import TextPromptedSegmenter, joint_digest, to_uint8
from classifier_lens.runner.configuration.value_ranges import BelowOne
from classifier_lens.runner.types import UserError, indefinite_article

MODEL_TYPE = "clipseg"  # as a checkpoint's config.json names it


@dataclass(frozen=True)
class ClipSegSegmenter(TextPromptedSegmenter):
    """A pixel shows what is asked for where its probability, resized to the picture, exceeds `threshold` (in [0, 1]).

    processor: resizes and normalises pictures and cuts texts into tokens; template: the text that is asked with.
    """

    network: CLIPSegForImageSegmentation
    processor: CLIPSegProcessor
    threshold: float
    template: str
    digest: str

    @torch.no_grad()
    def mask(self, image: Float[Tensor, "3 h w"], words: str) -> Float[Tensor, "1 h w"]:
        """1 where the picture shows what the words name, else 0. Raises UserError if the words are too many."""
        self.network.to(image.device)
        text = fill_text_template(self.template, words)
        given = self.processor(
            text=[text], images=[to_uint8(image)], input_data_format="channels_first", return_tensors="pt"
        ).to(image.device)  # fmt: skip
        length, longest = given["input_ids"].shape[1], self.network.config.text_config.max_position_embeddings
        if length > longest:
            raise UserError(f"segmenter.template: '{text}' has {length} tokens; the network reads {longest}")
        probability = self.network(**given).logits.sigmoid()
        large = F.interpolate(probability[None], size=image.shape[-2:], mode="bilinear", align_corners=False)
        return (large[0] > self.threshold).float()


def fill_text_template(template: str, words: str) -> str:
    """The text that asks for words. Raises UserError for other placeholders than `{words}` and `{article}`, which is
    empty where the words begin with an article or end in the s of a plural."""
    first, *_ = words.lower().split() or [""]
    bare = first in ("a", "an", "the") or (words.endswith("s") and not words.endswith("ss"))
    return fill_template("segmenter.template", template, words=words, article="" if bare else indefinite_article(words))


def load(path: str, revision: str | None, threshold: BelowOne, template: str) -> ClipSegSegmenter:
    """A CLIPSeg network in float32; see `ClipSegSegmenter` for the settings.

    path: a folder in transformers' layout, or a hub id whose files are in the hub's cache at `revision`;
    template: with `{words}` in the place of what is looked for, and `{article}` for its indefinite article.
    Raises UserError if weights are missing or of another kind, or if a setting is not allowed.
    """
    key = f"segmenter.path={path}"
    if "{words}" not in template:
        raise UserError(f"segmenter.template={template}: has no {{words}} for what is looked for")
    fill_text_template(template, "words")
    folder = local_folder(key, path, revision)
    read_model_type(key, folder, [MODEL_TYPE])
    with as_user_error(key):
        processor = CLIPSegProcessor.from_pretrained(folder)
    network = load_frozen(key, folder, CLIPSegForImageSegmentation, torch.float32)
    digest = joint_digest([network], processor.image_processor.to_json_string(), threshold, template)
    return ClipSegSegmenter(network, processor, threshold, template, digest)
