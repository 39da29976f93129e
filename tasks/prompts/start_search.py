"""Where the search for a picture begins: of many pictures of plain prompts the one that shows most already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.protocols import Classifier, TaskInputs
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.problems.image_problems import probabilities, problem_seed
from classifier_lens.tasks.prompts.caption_edit import format_prompt
from classifier_lens.tasks.prompts.target_rules import resolve_class_name


@dataclass(frozen=True)
class StartPrompt:
    """A prompt and the seed of its picture: class_name: the class that it names; phrase: that with what follows it."""

    class_name: str
    phrase: str
    prompt: str
    seed: int


def parse_start_classes(start_classes: str | Sequence[str], labels: Sequence[str]) -> list[str] | None:
    """The classes whose prompt a picture may start from; None for its own. Raises UserError for anything else."""
    if start_classes == "own":
        return None
    if start_classes == "all":
        return list(labels)
    if isinstance(start_classes, str) or not start_classes:
        raise UserError(f"task.start_classes={start_classes or []}: allowed are own, all or names as [a, b]")
    return [resolve_class_name("task.start_classes", word, labels) for word in start_classes]


def largest_gap_search(
    world: TaskInputs,
    rival: Classifier,
    prompt: str,
    start_classes: Sequence[str] | None,
    context_phrases: Sequence[str],
    count: int,
) -> Callable[[str, int, float], StartPrompt]:
    """A search for start pictures on which two classifiers disagree already.

    prompt: template; start_classes: classes that may take its place of the name, None for the asked class alone;
    context_phrases: that may follow the name, `""` for none; count: start latents per name. Returns a function of a
    class, the number of a picture and a sign, +1 where the classifier is to see more of the class than its rival and −1
    where less; it gives the start whose picture has the largest gap of confidences. One picture serves every class and
    both signs, so that all classes cost no more than one."""
    labels = list(world.classifier.labels)

    def start(word: str, phrase: str, k: int, j: int) -> StartPrompt:
        name, place = (
            f"{word} {phrase}".strip(),
            labels.index(word) * len(context_phrases) + list(context_phrases).index(phrase),
        )
        return StartPrompt(word, name, format_prompt(prompt, name), problem_seed(world.seed, place, k * count + j))

    @cache
    @torch.no_grad()
    def gaps(word: str, phrase: str, k: int) -> Float[Tensor, "count classes"]:
        starts = [start(word, phrase, k, j) for j in range(count)]
        images = list(world.generator.sample([s.prompt for s in starts], [s.seed for s in starts]))
        return probabilities(world.classifier, images) - probabilities(rival, images)

    def begin(label: str, k: int, sign: float) -> StartPrompt:
        tried = list(product([label] if start_classes is None else start_classes, context_phrases, range(count)))
        if len(tried) > 1:
            own = labels.index(label)
            tried.sort(key=lambda one: -sign * float(gaps(one[0], one[1], k)[one[2], own]))
        word, phrase, j = tried[0]
        return start(word, phrase, k, j)

    return begin
