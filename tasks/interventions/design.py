"""The factorial set of generated images: every factor of the prompt, such as place and hue, is varied independently of
the others, so that one set measures the effects of all phrases on all classifiers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.protocols import Cache, Embedder, TextToImage
from classifier_lens.runner.types import UserError, indefinite_article
from classifier_lens.tasks.problems.problem_names import problem_seed
from classifier_lens.tasks.units.activation_ranking import load_or_compute

BATCH_SIZE = 16  # images that are generated at once
CLASS_FIELD = "class"
Phrase = str | None  # None: nothing is said about the factor


@dataclass(frozen=True)
class PromptScene:
    """What one prompt says: the class, the phrase of each factor, and the seed of its start latent."""

    label: str
    phrases: Mapping[str, Phrase]
    seed: int

    def with_phrase(self, factor: str, phrase: Phrase) -> PromptScene:
        """The same scene, from the same noise, with another phrase of one factor."""
        return replace(self, phrases={**self.phrases, factor: phrase})


def format_scene(template: str, label: str, phrases: Mapping[str, Phrase]) -> str:
    """The prompt of a class and the phrases of its factors; the article `a` before a vowel becomes `an`."""
    words = template.format(**{CLASS_FIELD: label, **{factor: phrase or "" for factor, phrase in phrases.items()}})
    prompt = " ".join(words.split())
    return re.sub(r"\ba (\S+)", lambda match: f"{indefinite_article(match[1])} {match[1]}", prompt)


def check_template(template: str, factors: Mapping[str, Sequence[Phrase]]) -> None:
    """Raises UserError unless the template has a field for the class and for each factor, and each factor two
    phrases."""
    try:
        fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise UserError(f"task.prompt={template}: {error}") from error
    expected = {CLASS_FIELD, *factors}
    if fields != expected:
        names = ", ".join(f"{{{name}}}" for name in sorted(expected))
        raise UserError(f"task.prompt={template}: expected the fields {names}, one for the class and for each factor")
    for factor, phrases in factors.items():
        if len(set(phrases)) < 2 or len(set(phrases)) < len(phrases):
            raise UserError(f"task.factors.{factor}: expected two or more different phrases")


def factorial_scenes(
    label: str, position: int, factors: Mapping[str, Sequence[Phrase]], count: int, seed: int
) -> list[PromptScene]:
    """`count` scenes of a class. Each phrase of a factor occurs equally often, up to one, in random order, independent
    of the other factors. position: of the class, which its random numbers depend on."""
    random = np.random.default_rng([seed, position])
    columns = {
        factor: [phrases[i % len(phrases)] for i in random.permutation(count)] for factor, phrases in factors.items()
    }
    return [
        PromptScene(
            label,
            {factor: column[i] for factor, column in columns.items()},
            problem_seed(seed, position * count + i, 2),
        )
        for i in range(count)
    ]


def generate_scenes(
    scenes: Sequence[PromptScene], template: str, generator: TextToImage, cache: Cache
) -> Float[Tensor, "n 3 h w"]:
    """The images of scenes in multiples of 1/255, as saved ones; from the cache if a run has generated them before."""
    prompts = [format_scene(template, scene.label, scene.phrases) for scene in scenes]
    seeds = [scene.seed for scene in scenes]

    def generate() -> dict[str, Tensor]:
        parts = [
            generator.sample(prompts[first : first + BATCH_SIZE], seeds[first : first + BATCH_SIZE]).cpu()
            for first in range(0, len(prompts), BATCH_SIZE)
        ]
        return {"images": (torch.cat(parts) * 255).round().to(torch.uint8)}

    key = ("factorial set", generator.fingerprint, prompts, seeds)
    return load_or_compute(cache, key, generate)["images"].float() / 255


@torch.no_grad()
def shares_generated(
    scenes: Sequence[PromptScene],
    images: Float[Tensor, "n 3 h w"],
    template: str,
    factors: Mapping[str, Sequence[Phrase]],
    clip: Embedder,
) -> dict[tuple[str, Phrase], float]:
    """Per factor and phrase the share of the images of the phrase for which CLIP prefers it to the other phrases of the
    factor: whether the generator shows what the prompt says. scenes: of one class."""
    embeddings, label = clip.embed_images(images).cpu(), scenes[0].label
    shares = {}
    for factor, phrases in factors.items():
        others = dict.fromkeys(factors)
        texts = [format_scene(template, label, {**others, factor: phrase}) for phrase in phrases]
        best = (embeddings @ clip.embed_texts(texts).cpu().T).argmax(dim=1)
        for i, phrase in enumerate(phrases):
            rows = torch.tensor([scene.phrases[factor] == phrase for scene in scenes])
            shares[factor, phrase] = (best[rows] == i).float().mean().item() if rows.any() else float("nan")
    return shares
