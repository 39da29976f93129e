"""Pictures changed a little so that a network errs: projected gradient ascent of its loss (Madry et al. 2018).

Training on such pictures gives a robust network; accuracy on them says how robust a network is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def l2_pgd(
    loss: Callable[[Tensor], Tensor], images: Float[Tensor, "b 3 h w"], epsilon: float, step_size: float, num_steps: int
) -> Float[Tensor, "b 3 h w"]:
    """Pictures of a higher loss, each within an L2 ball of its own around the picture it began as.

    loss: images in [0, 1] to one number, the sum or the mean of the pictures' losses; no picture's loss may depend on
    another picture; images: in [0, 1]; epsilon: radius of the ball, the L2 norm over all channels and pixels of
    a picture in [0, 1] units, 0 leaves the pictures as they are; step_size: L2 length of one step, in the same units;
    num_steps: how many. A picture without a gradient stays. The result carries no gradient.
    """
    start = attacked = images.detach()
    for _ in range(num_steps if epsilon > 0 else 0):
        with torch.enable_grad():
            point = attacked.detach().requires_grad_(True)
            gradient = torch.autograd.grad(loss(point), point)[0]
        change = attacked + step_size * gradient / l2_norms(gradient) - start
        change = change * (epsilon / l2_norms(change)).clamp(max=1.0)
        # The picture lies in [0, 1], so that clamping shortens the change: the result stays in the ball.
        attacked = (start + change).clamp(0, 1)
    return attacked


def l2_norms(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 1 1"]:
    """L2 norm of each sample; the smallest positive number in place of zero, so that one may divide by it."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
