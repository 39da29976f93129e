"""A named, weighted sum of terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.types import Objective, Scene


@dataclass(frozen=True)
class Loss:
    """Per sample: the weighted sum, and each term before its weight."""

    total: Float[Tensor, " b"]
    terms: dict[str, Float[Tensor, " b"]]

    def non_finite_term(self, i: int) -> str | None:
        """The name of the first term that is not finite for sample i, None if all are."""
        return next((name for name, value in self.terms.items() if not torch.isfinite(value[i])), None)


def evaluate(objective: Objective, scene: Scene) -> Loss:
    """The loss of a scene. Raises ValueError if a term does not return one value per sample."""
    terms = {name: term(scene) for name, (_, term) in objective.items()}
    for name, value in terms.items():
        if value.shape != scene.image.shape[:1]:
            raise ValueError(f"term {name} has shape {tuple(value.shape)}, not one value per sample")
    total = torch.stack([weight * terms[name] for name, (weight, _) in objective.items()]).sum(dim=0)
    return Loss(total, terms)
