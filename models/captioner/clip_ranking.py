"""Captions from word lists, ranked by CLIP similarity with the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.captioner.captioner import check_caption, fill_template
from classifier_lens.runner.configuration.value_ranges import Names, PerProblemCount
from classifier_lens.runner.files.text import read_lines
from classifier_lens.runner.protocols import Embedder
from classifier_lens.runner.types import Example, UserError, indefinite_article


class ClipRankingCaptioner:
    """Captions and objects with the highest cosine similarity between the CLIP embeddings of text and image.

    Args:
        clip: the embedding model; each text is embedded once.
        objects: nouns with their article ("a crab", "sand"): a list, or a text file with one per line.
        context_phrases: phrases that follow the class name ("on sand"): a list, or a text file with one per line.
        top_k: number of objects that are listed.
        object_template: the text of an object, with the placeholder `{object}`.
        template: the caption, with the placeholders `{article}`, `{label}` and `{phrase}`.

    Raises:
        UserError: a list is empty or cannot be read, or a template has other placeholders.
    """

    def __init__(
        self, clip: Embedder, objects: str | Names, context_phrases: str | Names, top_k: PerProblemCount,
        object_template: str, template: str,
    ) -> None:  # fmt: skip
        self.clip, self.top_k, self.template = clip, top_k, template
        self.notes: Mapping[str, str] = {}
        self._phrases = read_list("captioner.context_phrases", context_phrases)
        self._objects = read_list("captioner.objects", objects)
        key = "captioner.object_template"
        self._object_embeddings = clip.embed_texts(
            [fill_template(key, object_template, object=name) for name in self._objects]
        )
        self._captions: dict[str, tuple[list[str], Float[Tensor, "n d"]]] = {}  # by class name

    def caption(self, example: Example) -> str:
        """The template with the phrase that gives the highest similarity with the image."""
        if (label := example.label) not in self._captions:
            key, words = "captioner.template", {"article": indefinite_article(label), "label": label}
            texts = [fill_template(key, self.template, phrase=phrase, **words) for phrase in self._phrases]
            self._captions[label] = [check_caption(text, label, key) for text in texts], self.clip.embed_texts(texts)
        captions, embeddings = self._captions[label]
        return captions[self._ranking(example, embeddings)[0]]

    def objects(self, example: Example) -> list[str]:
        """The `top_k` objects of highest similarity, in descending order."""
        return [self._objects[i] for i in self._ranking(example, self._object_embeddings)[: self.top_k]]

    @torch.no_grad()
    def _ranking(self, example: Example, text_embeddings: Float[Tensor, "n d"]) -> list[int]:
        """Positions of the texts by descending similarity with the image; the sort is stable."""
        image_embedding = self.clip.embed_images(example.image[None])[0]
        # The model is shared and may have been moved to another device since the texts were embedded.
        similarities = text_embeddings.to(image_embedding.device) @ image_embedding
        return similarities.argsort(descending=True, stable=True).tolist()


def read_list(key: str, words: str | Sequence[str]) -> list[str]:
    """The words of a list, or of a text file with one per line. Raises UserError if there are none."""
    if isinstance(words, str):
        words = read_lines(f"{key}={words}", words, "a list, or a text file of one per line")
    if not (entries := [word.strip() for word in words if word.strip()]):
        raise UserError(f"{key}: is empty; expected a list, or a text file of one per line")
    return entries
