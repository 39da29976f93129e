"""Where the search for a picture begins: of many pictures of plain prompts the one that shows most already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from runner.types import Classifier, World
from tasks.edits import prompt_of
from tasks.pictures import own_seed, probabilities

Begin = Callable[[str, int, float], tuple[str, int]]


def strongest_gap(world: World, rival: Classifier, prompt: str, words: Sequence[str] | None, count: int) -> Begin:
    """A search for start pictures on which two classifiers disagree already.

    prompt: template; words: classes that may take its place of the name, None for the asked class alone; count: start
    latents per word. Returns a function of a class, the number of a picture and a sign, +1 where the classifier is to
    see more of the class than its rival and −1 where less; it gives the word and the seed whose picture has the largest
    gap of confidences. One picture serves every class and both signs, so that all classes cost no more than one.
    """
    labels = list(world.classifier.labels)

    def seeds(word: str, k: int) -> list[int]:
        return [own_seed(world.seed, labels.index(word), k * count + j) for j in range(count)]

    @cache
    @torch.no_grad()
    def gaps(word: str, k: int) -> Float[Tensor, "count classes"]:
        images = list(world.generator.sample([prompt_of(prompt, word)] * count, seeds(word, k)))
        return probabilities(world.classifier, images) - probabilities(rival, images)

    def begin(label: str, k: int, sign: float) -> tuple[str, int]:
        tried = [(word, j) for word in ([label] if words is None else words) for j in range(count)]
        if len(tried) > 1:
            tried.sort(key=lambda start: -sign * float(gaps(start[0], k)[start[1], labels.index(label)]))
        word, j = tried[0]
        return word, seeds(word, k)[j]

    return begin
