"""What a classifier calls many pictures of one prompt: the activation score of DiffExplainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import binomtest
from torch import Tensor

from runner.types import Cache, Classifier, Pictures, World
from tasks.pictures import probabilities
from tasks.worded import pictures_of


@dataclass(frozen=True)
class Score:
    """How many of `count` pictures are called a class, and the mean confidence in it."""

    hits: int
    count: int
    confidence: float

    @property
    def share(self) -> float:
        """The activation score."""
        return self.hits / self.count

    def record(self) -> dict[str, Any]:
        """Plain values, with the 95 % Wilson interval of the share."""
        ends = binomtest(self.hits, self.count).proportion_ci(method="wilson")
        return {
            "activation_score": self.share, "interval": [float(ends.low), float(ends.high)], "images": self.count,
            "mean_confidence": self.confidence,
        }  # fmt: skip


def samples(pictures: Pictures) -> Float[Tensor, "n 3 h w"]:
    """The reported pictures of an answer, the one that counts first."""
    return torch.stack([pictures["best"], *(pictures[name] for name in sorted(pictures) if name.startswith("sample_"))])


def score(classifier: Classifier, images: Sequence[Float[Tensor, "3 h w"]], target: int) -> Score:
    """What the classifier calls pictures."""
    p = probabilities(classifier, images)
    return Score(int((p.argmax(dim=1) == target).sum()), len(p), float(p[:, target].mean()))


@dataclass(frozen=True)
class Rival:
    """A prompt that anybody could have written, and its score on fresh pictures."""

    prompt: str
    score: Score


def rival(world: World, prompt: str, target: int, images: int, cache: Cache) -> Rival:
    """The score of a plain prompt on `images` pictures."""
    return Rival(prompt, score(world.classifier, list(pictures_of(prompt, "{phrase}", images, world, cache)), target))


def verdict(own: float, other: float) -> str:
    """How a score compares with another one."""
    return "beats" if own > other else "equals" if own == other else "falls short of"
