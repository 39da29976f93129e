"""Search for start prompts and seeds: of many generated images, the one on which two classifiers disagree most."""

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
from classifier_lens.tasks.analysis.predictions import probabilities
from classifier_lens.tasks.problems.problem_names import problem_seed
from classifier_lens.tasks.prompts.caption_edit import format_prompt
from classifier_lens.tasks.prompts.target_rules import resolve_class_name


@dataclass(frozen=True)
class StartPrompt:
    """A prompt and the seed of its image. class_name: the class that it names; phrase: the class name with its context
    phrase."""

    class_name: str
    phrase: str
    prompt: str
    seed: int


def parse_start_classes(start_classes: str | Sequence[str], labels: Sequence[str]) -> list[str] | None:
    """The classes whose prompt an image may start from; None for its own. Raises UserError for anything else."""
    if start_classes == "own":
        return None
    if start_classes == "all":
        return list(labels)
    if isinstance(start_classes, str) or not start_classes:
        raise UserError(f"task.start_classes={start_classes or []}: allowed are own, all or names as [a, b]")
    return [resolve_class_name("task.start_classes", name, labels) for name in start_classes]


def largest_gap_search(
    inputs: TaskInputs,
    second: Classifier,
    prompt: str,
    start_classes: Sequence[str] | None,
    context_phrases: Sequence[str],
    count: int,
) -> Callable[[str, int, float], StartPrompt]:
    """A search for start images with the largest gap between the confidences of two classifiers.

    prompt: template; start_classes: classes that a prompt may name, None for the target class alone; context_phrases:
    phrases that may follow the class name, `""` for none; count: start latents per prompt. Returns a function of a
    target class, the number of an image and a sign: 1 if the first classifier should have the higher confidence in the
    target, -1 for the second one. Each generated image serves all targets and both signs, so that a search for all
    classes costs as much as for one."""
    labels = list(inputs.classifier.labels)

    def start(class_name: str, context: str, k: int, j: int) -> StartPrompt:
        phrase = f"{class_name} {context}".strip()
        prompt_index = labels.index(class_name) * len(context_phrases) + list(context_phrases).index(context)
        seed = problem_seed(inputs.seed, prompt_index, k * count + j)
        return StartPrompt(class_name, phrase, format_prompt(prompt, phrase), seed)

    @cache
    @torch.no_grad()
    def gaps(class_name: str, context: str, k: int) -> Float[Tensor, "count classes"]:
        starts = [start(class_name, context, k, j) for j in range(count)]
        images = list(inputs.generator.sample([s.prompt for s in starts], [s.seed for s in starts]))
        return probabilities(inputs.classifier, images) - probabilities(second, images)

    def search(target: str, k: int, sign: float) -> StartPrompt:
        class_names = [target] if start_classes is None else start_classes
        candidates = list(product(class_names, context_phrases, range(count)))
        if len(candidates) > 1:
            index = labels.index(target)
            candidates.sort(
                key=lambda candidate: -sign * float(gaps(candidate[0], candidate[1], k)[candidate[2], index])
            )
        class_name, context, j = candidates[0]
        return start(class_name, context, k, j)

    return search
