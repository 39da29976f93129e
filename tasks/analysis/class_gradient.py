"""The gradient of a class's probability with respect to an image (DiG-IN, Fig. 13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.types import Scene

# (scene, seeds, step, the classifier's size) -> the scene with the views that the classifier sees.
Augmentation = Callable[[Scene, Sequence[int], int, int], Scene]


def no_augmentation(scene: Scene, seeds: Sequence[int], step: int, size: int) -> Scene:
    """The scene as it is, whose only view is the image."""
    return scene


def input_gradient(
    classifier: Classifier, image: Float[Tensor, "3 h w"], target: int, augmentation: Augmentation, seed: int
) -> tuple[Float[Tensor, "3 h w"], float]:
    """∇_x of p_f(y|x), averaged over the views that an augmentation samples with the seed, and that average."""
    with torch.enable_grad():
        pixels = image[None].detach().clone().requires_grad_()
        scene = augmentation(Scene(pixels, pixels, pixels[:, None]), [seed], 0, classifier.size)
        probability = classifier(scene.views[0]).logits.float().softmax(dim=1)[:, target].mean()
        (gradient,) = torch.autograd.grad(probability, pixels)
    return gradient[0], probability.item()


def gradient_image(gradient: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """A gradient as an image in [0, 1]: divided by its largest absolute value, 0.5 where it is zero."""
    return 0.5 + gradient / (2 * gradient.abs().max().clamp(min=torch.finfo(gradient.dtype).tiny))
