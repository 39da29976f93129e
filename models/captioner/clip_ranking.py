"""Captions from lists of words: a CLIP model says which of them fit a picture best."""

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
    """Ranks words for a picture by the cosine of their CLIP embeddings with the picture's; texts are embedded once.

    clip: the model; objects: nouns as they stand in a sentence ("a crab", "sand"); context_phrases: what may follow the
    class name ("on sand"); each a list, or a text file of one per line; top_k: how many objects are named;
    object_template: an object in a sentence, as `{object}`; template: the caption, with `{article}`, `{label}` and
    `{phrase}`. Raises UserError if a list is empty or cannot be read, or if a template cannot be filled in."""

    def __init__(
        self, clip: Embedder, objects: str | Names, context_phrases: str | Names, top_k: PerProblemCount,
        object_template: str, template: str,
    ) -> None:  # fmt: skip
        self.clip, self.top_k, self.template = clip, top_k, template
        self.notes: Mapping[str, str] = {}
        self._phrases = read_list("captioner.context_phrases", context_phrases)
        self._objects = read_list("captioner.objects", objects)
        key = "captioner.object_template"
        self._object_texts = clip.embed_texts(
            [fill_template(key, object_template, object=name) for name in self._objects]
        )
        self._captions: dict[str, tuple[list[str], Float[Tensor, "n d"]]] = {}

    def caption(self, example: Example) -> str:
        """The template with the phrase that makes it fit the picture best."""
        if (label := example.label) not in self._captions:
            key, words = "captioner.template", {"article": indefinite_article(label), "label": label}
            texts = [fill_template(key, self.template, phrase=phrase, **words) for phrase in self._phrases]
            self._captions[label] = [check_caption(text, label, key) for text in texts], self.clip.embed_texts(texts)
        captions, embedded = self._captions[label]
        return captions[self._ranked(example, embedded)[0]]

    def objects(self, example: Example) -> list[str]:
        """The best objects, best first, as they stand in the list."""
        return [self._objects[i] for i in self._ranked(example, self._object_texts)[: self.top_k]]

    @torch.no_grad()
    def _ranked(self, example: Example, texts: Float[Tensor, "n d"]) -> list[int]:
        """Positions of texts by how well they fit the picture; equal ones in their order."""
        image = self.clip.embed_images(example.image[None])[0]
        # Another part that shares the model may have moved it since the texts were embedded.
        return (texts.to(image.device) @ image).argsort(descending=True, stable=True).tolist()


def read_list(key: str, words: str | Sequence[str]) -> list[str]:
    """Words as they are given, or from a text file of one per line. Raises UserError if there are none."""
    if isinstance(words, str):
        words = read_lines(f"{key}={words}", words, "a list, or a text file of one per line")
    if not (found := [word.strip() for word in words if word.strip()]):
        raise UserError(f"{key}: holds nothing; wanted is a list, or a text file of one per line")
    return found
