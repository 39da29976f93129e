"""The feature attack (Singla et al., 2021; DiG-IN, Fig. 10): a unit is raised by changes of the pixels alone."""

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
    """The nearest images whose L2 distance from their centers is at most the radius; those inside as they are."""
    offset = x - center
    length = offset.flatten(-3).norm(dim=-1)[..., None, None, None]
    return torch.where(length > radius, center + offset * (radius / length.clamp(min=1e-12)), x)


@dataclass(frozen=True)
class FeatureAttack:
    """Projected gradient ascent on a unit. radius: largest L2 distance from the image, over all values in [0, 1];
    step_size: L2 length of a step."""

    radius: NonNegative
    step_size: LearningRate
    steps: Steps

    def __call__(
        self, classifier: Classifier, image: Float[Tensor, "3 h w"], unit: Unit, sign: float
    ) -> Float[Tensor, "3 h w"]:
        """The image, changed within the radius so that the unit is raised (sign 1) or lowered (sign -1) by steps along
        the normalized gradient; values stay in [0, 1]."""
        changed = image.detach().clone()
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = changed[None].requires_grad_()
                value = sign * per_sample_activations(classifier, leaf, [unit], 1).sum()
                gradient = torch.autograd.grad(value, leaf)[0][0]
            changed = changed.detach() + self.step_size * gradient / gradient.norm().clamp(min=1e-12)
            changed = project_l2_ball(changed, image, self.radius).clamp(0, 1)
        return changed
