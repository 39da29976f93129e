"""The feature attack (Singla et al., 2021; DiG-IN, Fig. 10): what pixels alone make of a unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.configuration.value_ranges import LearningRate, NonNegative, Steps
from classifier_lens.runner.protocols import Classifier
from classifier_lens.tasks.units.addressing import Unit, per_sample_activations


def project_l2_ball(
    x: Float[Tensor, "... c h w"], center: Float[Tensor, "... c h w"], radius: float
) -> Float[Tensor, "... c h w"]:  # fmt: skip
    """The nearest pictures whose L2 distance from their centres is at most the radius; those inside as they are."""
    away = x - center
    length = away.flatten(-3).norm(dim=-1)[..., None, None, None]
    return torch.where(length > radius, center + away * (radius / length.clamp(min=1e-12)), x)


@dataclass(frozen=True)
class FeatureAttack:
    """radius: largest L2 distance from the picture, in [0, 1] units over all values; step_size: length of a step;
    steps."""

    radius: NonNegative
    step_size: LearningRate
    steps: Steps

    def __call__(
        self, classifier: Classifier, image: Float[Tensor, "3 h w"], unit: Unit, sign: float
    ) -> Float[Tensor, "3 h w"]:
        """The picture changed within the radius so that the unit is raised (sign 1) or lowered (sign −1), by steps
        along the normalised gradient; values stay in [0, 1]."""
        changed = image.detach().clone()
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = changed[None].requires_grad_()
                value = sign * per_sample_activations(classifier, leaf, [unit], 1).sum()
                gradient = torch.autograd.grad(value, leaf)[0][0]
            changed = changed.detach() + self.step_size * gradient / gradient.norm().clamp(min=1e-12)
            changed = project_l2_ball(changed, image, self.radius).clamp(0, 1)
        return changed
