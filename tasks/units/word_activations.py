"""What a unit answers to pictures of a word alone: the word that excites it most is where a visualisation starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.logging.loop_progress import counted
from classifier_lens.runner.protocols import Cache, World
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.problems.image_problems import own_seed
from classifier_lens.tasks.units.activation_ranking import cached
from classifier_lens.tasks.units.addressing import Unit, activation


@dataclass(frozen=True)
class Words:
    """best: the word with the highest mean activation; means: of every word; highest: activation over all words'
    images; picture: gives that of the best word's images that excites the unit most."""

    best: str
    means: dict[str, float]
    highest: float
    picture: Callable[[], Float[Tensor, "3 h w"]]


def words_of(unit: Unit, words: Sequence[str], template: str, samples: int, world: World, cache: Cache) -> Words:
    """The activations of one unit in `samples` pictures of each word (DiG-IN, App. F.1)."""
    images = partial(pictures_of, template=template, samples=samples, world=world, cache=cache)
    values = {word: activation(world.classifier, images(word), unit) for word in counted(words, "words are generated")}
    best = max(values, key=lambda word: values[word].mean().item())
    highest = max(v.max().item() for v in values.values())
    means = {word: v.mean().item() for word, v in values.items()}
    row = int(values[best].argmax())
    return Words(best, means, highest, lambda: images(best)[row])


def phrased(template: str, phrase: str, key: str = "task.prompt") -> str:
    """A prompt from a template with `{phrase}`. Raises UserError naming the configuration's key if it does not stand
    there."""
    if "{phrase}" not in template:
        raise UserError(f"{key}={template}: has to contain {{phrase}}, where the name of what is seen goes")
    return template.replace("{phrase}", phrase)


def pictures_of(word: str, template: str, samples: int, world: World, cache: Cache) -> Float[Tensor, "n 3 h w"]:
    """Pictures of a word alone, the same for every unit of a run."""
    prompts, seeds = [phrased(template, word)] * samples, [own_seed(world.seed, i, repeat=1) for i in range(samples)]
    key = ("word", world.generator.recipe, prompts, seeds)
    return cached(cache, key, lambda: {"pictures": world.generator.sample(prompts, seeds).cpu()})["pictures"]
