"""Activations of a unit in generated images of single words: the most activating word starts a visualization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.logging.loop_progress import track_progress
from classifier_lens.runner.protocols import Cache, TaskInputs
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.problems.problem_names import problem_seed
from classifier_lens.tasks.units.activation_ranking import load_or_compute
from classifier_lens.tasks.units.addressing import Unit, activation


@dataclass(frozen=True)
class WordActivations:
    """best_word: the word with the highest mean activation; means: mean activation by word; max_activation: over the
    images of all words; best_image: reads the most activating image of the best word."""

    best_word: str
    means: dict[str, float]
    max_activation: float
    best_image: Callable[[], Float[Tensor, "3 h w"]]


def measure_word_activations(
    unit: Unit, words: Sequence[str], template: str, images_per_object: int, inputs: TaskInputs, cache: Cache
) -> WordActivations:
    """The activations of one unit in `images_per_object` images of each word (DiG-IN, App. F.1)."""
    images = partial(generate_images, template=template, num_images=images_per_object, inputs=inputs, cache=cache)
    values = {
        word: activation(inputs.classifier, images(word), unit) for word in track_progress(words, "words are generated")
    }
    best_word = max(values, key=lambda word: values[word].mean().item())
    max_activation = max(v.max().item() for v in values.values())
    means = {word: v.mean().item() for word, v in values.items()}
    row = int(values[best_word].argmax())
    return WordActivations(best_word, means, max_activation, lambda: images(best_word)[row])


def format_phrase_prompt(template: str, phrase: str, key: str = "task.prompt") -> str:
    """A prompt from a template with `{phrase}`. Raises UserError naming the configuration's `key` if the template has
    no such field."""
    if "{phrase}" not in template:
        raise UserError(f"{key}={template}: must contain {{phrase}}, which the object's name replaces")
    return template.replace("{phrase}", phrase)


def generate_images(
    word: str, template: str, num_images: int, inputs: TaskInputs, cache: Cache
) -> Float[Tensor, "n 3 h w"]:
    """Generated images of a word in a template with `{phrase}`, the same for every unit of a run."""
    prompts = [format_phrase_prompt(template, word)] * num_images
    seeds = [problem_seed(inputs.seed, i, repeat=1) for i in range(num_images)]
    key = ("word", inputs.generator.fingerprint, prompts, seeds)
    images = load_or_compute(cache, key, lambda: {"pictures": inputs.generator.sample(prompts, seeds).cpu()})
    return images["pictures"]
