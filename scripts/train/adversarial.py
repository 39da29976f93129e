"""Adversarial examples by projected gradient descent (PGD) in an L2 ball (Madry et al. 2018).

Training on them gives a robust network; accuracy on them measures robustness.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def l2_pgd(
    loss: Callable[[Tensor], Tensor], images: Float[Tensor, "b 3 h w"], epsilon: float, step_size: float, num_steps: int
) -> Float[Tensor, "b 3 h w"]:
    """Images with a higher loss, each within an L2 ball around its original; they carry no gradient.

    loss: images in [0, 1] to one number, the sum or the mean of the losses per image; the loss of an image must not
    depend on other images; images: in [0, 1]; epsilon: radius of the ball, the L2 norm over all channels and pixels of
    an image in [0, 1] units; 0 returns the images unchanged; step_size: L2 length of one step, in the same units. An
    image with a zero gradient stays where it is.
    """
    originals = adversarial = images.detach()
    for _ in range(num_steps if epsilon > 0 else 0):
        with torch.enable_grad():
            point = adversarial.detach().requires_grad_(True)
            gradient = torch.autograd.grad(loss(point), point)[0]
        perturbation = adversarial + step_size * gradient / l2_norms(gradient) - originals
        perturbation = perturbation * (epsilon / l2_norms(perturbation)).clamp(max=1.0)
        # The original is in [0, 1], so clamping shortens the perturbation: the result stays in the ball.
        adversarial = (originals + perturbation).clamp(0, 1)
    return adversarial


def l2_norms(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 1 1"]:
    """L2 norm of each sample; the smallest positive number instead of zero, so that it can be divided by."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
