"""Where the search for a picture begins: of many pictures of plain prompts the one that shows most already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.protocols import Classifier, World
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.problems.image_problems import own_seed, probabilities
from classifier_lens.tasks.prompts.caption_edit import prompt_of
from classifier_lens.tasks.prompts.target_rules import known_label


@dataclass(frozen=True)
class Start:
    """A prompt and the seed of its picture: word: the class that it names; name: that with what follows it."""

    word: str
    name: str
    prompt: str
    seed: int


def start_words(words: str | Sequence[str], labels: Sequence[str]) -> list[str] | None:
    """The classes whose prompt a picture may start from; None for its own. Raises UserError for anything else."""
    if words == "own":
        return None
    if words == "all":
        return list(labels)
    if isinstance(words, str) or not words:
        raise UserError(f"task.words={words or []}: allowed are own, all or names as [a, b]")
    return [known_label("task.words", word, labels) for word in words]


def strongest_gap(
    world: World, rival: Classifier, prompt: str, words: Sequence[str] | None, phrases: Sequence[str], count: int
) -> Callable[[str, int, float], Start]:
    """A search for start pictures on which two classifiers disagree already.

    prompt: template; words: classes that may take its place of the name, None for the asked class alone; phrases: that
    may follow the name, `""` for none; count: start latents per name. Returns a function of a class, the number of a
    picture and a sign, +1 where the classifier is to see more of the class than its rival and −1 where less; it gives
    the start whose picture has the largest gap of confidences. One picture serves every class and both signs, so that
    all classes cost no more than one.
    """
    labels = list(world.classifier.labels)

    def start(word: str, phrase: str, k: int, j: int) -> Start:
        name, place = f"{word} {phrase}".strip(), labels.index(word) * len(phrases) + list(phrases).index(phrase)
        return Start(word, name, prompt_of(prompt, name), own_seed(world.seed, place, k * count + j))

    @cache
    @torch.no_grad()
    def gaps(word: str, phrase: str, k: int) -> Float[Tensor, "count classes"]:
        starts = [start(word, phrase, k, j) for j in range(count)]
        images = list(world.generator.sample([s.prompt for s in starts], [s.seed for s in starts]))
        return probabilities(world.classifier, images) - probabilities(rival, images)

    def begin(label: str, k: int, sign: float) -> Start:
        tried = list(product([label] if words is None else words, phrases, range(count)))
        if len(tried) > 1:
            own = labels.index(label)
            tried.sort(key=lambda one: -sign * float(gaps(one[0], one[1], k)[one[2], own]))
        word, phrase, j = tried[0]
        return start(word, phrase, k, j)

    return begin
