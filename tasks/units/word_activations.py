"""What a unit answers to pictures of a word alone: the word that excites it most is where a visualisation starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.logging.loop_progress import track_progress
from classifier_lens.runner.protocols import Cache, TaskInputs
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.problems.image_problems import problem_seed
from classifier_lens.tasks.units.activation_ranking import load_or_compute
from classifier_lens.tasks.units.addressing import Unit, activation


@dataclass(frozen=True)
class WordActivations:
    """best_word: the word with the highest mean activation; means: of every word; max_activation: activation over all
    words' images; best_image: gives that of the best word's images that excites the unit most."""

    best_word: str
    means: dict[str, float]
    max_activation: float
    best_image: Callable[[], Float[Tensor, "3 h w"]]


def measure_word_activations(
    unit: Unit, words: Sequence[str], template: str, images_per_object: int, world: TaskInputs, cache: Cache
) -> WordActivations:
    """The activations of one unit in `images_per_object` pictures of each word (DiG-IN, App. F.1)."""
    images = partial(generate_images, template=template, num_images=images_per_object, world=world, cache=cache)
    values = {
        word: activation(world.classifier, images(word), unit) for word in track_progress(words, "words are generated")
    }
    best = max(values, key=lambda word: values[word].mean().item())
    highest = max(v.max().item() for v in values.values())
    means = {word: v.mean().item() for word, v in values.items()}
    row = int(values[best].argmax())
    return WordActivations(best, means, highest, lambda: images(best)[row])


def format_phrase_prompt(template: str, phrase: str, key: str = "task.prompt") -> str:
    """A prompt from a template with `{phrase}`. Raises UserError naming the configuration's key if it does not stand
    there."""
    if "{phrase}" not in template:
        raise UserError(f"{key}={template}: has to contain {{phrase}}, where the name of what is seen goes")
    return template.replace("{phrase}", phrase)


def generate_images(
    word: str, template: str, num_images: int, world: TaskInputs, cache: Cache
) -> Float[Tensor, "n 3 h w"]:
    """Pictures of a word alone, the same for every unit of a run."""
    prompts, seeds = (
        [format_phrase_prompt(template, word)] * num_images,
        [problem_seed(world.seed, i, repeat=1) for i in range(num_images)],
    )
    key = ("word", world.generator.fingerprint, prompts, seeds)
    return load_or_compute(cache, key, lambda: {"pictures": world.generator.sample(prompts, seeds).cpu()})["pictures"]
