"""Effects of phrases on the probability of a class, from one factorial set of generated images and from matched pairs
of images with and without a phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.protocols import Cache, Classifier, Embedder, TaskInputs
from classifier_lens.tasks.analysis.predictions import probabilities
from classifier_lens.tasks.interventions.design import (
    Phrase,
    PromptScene,
    factorial_scenes,
    generate_scenes,
    shares_generated,
)
from classifier_lens.tasks.interventions.effects import (
    Effect,
    Share,
    contrast,
    factor_effect,
    holm,
    necessity,
    sufficiency,
)

BATCH_SIZE = 64  # images per call of the classifier


@dataclass(frozen=True)
class Design:
    """A factorial set of generated images and what it is measured with.

    template: prompt with `{class}` and a field per factor; factors: phrases by factor, None where nothing is said;
    images_per_class: images of each class; clip: checks that the generator shows the phrases, None for no check."""

    template: str
    factors: Mapping[str, Sequence[Phrase]]
    images_per_class: int
    clip: Embedder | None
    cache: Cache
    inputs: TaskInputs

    @property
    def concepts(self) -> list[tuple[str, str]]:
        """Factor and phrase of every concept."""
        return [
            (factor, phrase) for factor, phrases in self.factors.items() for phrase in phrases if phrase is not None
        ]

    def class_set(self, label: str) -> ClassSet:
        """The images of a class and the classifier's probabilities for them."""
        classifier, generator = self.inputs.classifier, self.inputs.generator
        position, seed = classifier.labels.index(label), self.inputs.seed
        scenes = factorial_scenes(label, position, self.factors, self.images_per_class, seed)
        images = generate_scenes(scenes, self.template, generator, self.cache)
        shares = {} if self.clip is None else shares_generated(scenes, images, self.template, self.factors, self.clip)
        return ClassSet(scenes, images, predict(classifier, images), shares)

    def probabilities(self, scenes: Sequence[PromptScene]) -> tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n k"]]:
        """Images of scenes, and the classifier's probabilities for them."""
        images = generate_scenes(scenes, self.template, self.inputs.generator, self.cache)
        return images, predict(self.inputs.classifier, images)


@dataclass(frozen=True)
class ClassSet:
    """The scenes of a class, their images and the classifier's probabilities for all classes; shares_generated: see
    `design.shares_generated`."""

    scenes: Sequence[PromptScene]
    images: Float[Tensor, "n 3 h w"]
    probabilities: Float[Tensor, "n k"]
    shares_generated: Mapping[tuple[str, Phrase], float]

    def has(self, factor: str, phrase: str) -> np.ndarray:
        """Whether each scene has the phrase."""
        return np.array([scene.phrases[factor] == phrase for scene in self.scenes])

    def most_confused(self, label: int) -> int:
        """The other class with the highest mean probability."""
        means = self.probabilities.mean(dim=0)
        means[label] = -1.0
        return int(means.argmax())


@dataclass(frozen=True)
class PhraseEffect:
    """The effect of a phrase on the probability of a class. share_generated: the lower one of both sets of images, None
    if it was not checked."""

    factor: str
    phrase: str
    effect: Effect
    on_class: Effect
    on_similar_class: Effect
    share_generated: float | None


@dataclass(frozen=True)
class PairedEffect:
    """The change from images without a phrase to the same ones with it: from the same noise and otherwise the same
    prompt. without, with_phrase: some of these images, those of the class first."""

    effect: Effect
    sufficiency: Share
    necessity: Share
    without: Float[Tensor, "n 3 h w"]
    with_phrase: Float[Tensor, "n 3 h w"]


def predict(classifier: Classifier, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
    """The classifier's probabilities, `BATCH_SIZE` images at a time."""
    return torch.cat([probabilities(classifier, list(part)) for part in images.split(BATCH_SIZE)])


def phrase_effects(design: Design, label: int, of_class: ClassSet, of_similar: ClassSet) -> list[PhraseEffect]:
    """The effects of all phrases on the probability of a class, over its images and those of a similar class, with
    p-values corrected for their number."""
    sets, effects = (of_class, of_similar), []
    for factor, phrase in design.concepts:
        values = [(s.probabilities[:, label].double().numpy(), s.has(factor, phrase)) for s in sets]
        shares = [s.shares_generated[factor, phrase] for s in sets if s.shares_generated]
        on_class, on_similar = (factor_effect([one]) for one in values)
        share = min(shares) if shares else None
        effects.append(PhraseEffect(factor, phrase, factor_effect(values), on_class, on_similar, share))
    corrected = holm([effect.effect for effect in effects])
    return [replace(effect, effect=value) for effect, value in zip(effects, corrected, strict=True)]


def paired_effect(
    design: Design, label: int, of_class: ClassSet, of_similar: ClassSet, concept: tuple[str, str], count: int
) -> PairedEffect:
    """The effect of a phrase in `count` matched pairs of each kind: of the class and of the similar class, to which the
    phrase is added, and of the class, from which it is taken. A phrase is added and taken by exchanging it with another
    one of its factor."""
    factor, phrase = concept
    added = [_add(design, s, factor, phrase, count) for s in (of_class, of_similar)]
    taken_from = [i for i, has in enumerate(of_class.has(factor, phrase)) if has][:count]
    others = cycle(other for other in design.factors[factor] if other != phrase)
    scenes = [of_class.scenes[i].with_phrase(factor, other) for i, other in zip(taken_from, others, strict=False)]
    _, taken = design.probabilities(scenes)
    differences = [(after - before)[:, label].double().numpy() for _, _, before, after in added]
    before, after = (torch.cat(parts) for parts in zip(*[(b, a) for _, _, b, a in added], strict=True))
    return PairedEffect(
        contrast(differences, [0.5, 0.5]),
        sufficiency(is_predicted(before, label), is_predicted(after, label)),
        necessity(is_predicted(taken, label), is_predicted(of_class.probabilities[taken_from], label)),
        torch.cat([images for images, _, _, _ in added]),
        torch.cat([images for _, images, _, _ in added]),
    )


def _add(
    design: Design, of_class: ClassSet, factor: str, phrase: str, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first `count` images without a phrase and the same with it, and the probabilities for both."""
    rows = [i for i, has in enumerate(of_class.has(factor, phrase)) if not has][:count]
    images, p = design.probabilities([of_class.scenes[i].with_phrase(factor, phrase) for i in rows])
    return of_class.images[rows], images, of_class.probabilities[rows], p


def is_predicted(p: Float[Tensor, "n k"], label: int) -> np.ndarray:
    """Whether the class is the prediction for each image."""
    predicted: np.ndarray = (p.argmax(dim=1) == label).numpy()
    return predicted
