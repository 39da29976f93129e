"""Sampling-time guidance: one sampling, steered by the gradient at its x0-predictions, in the place of a descent."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from models.diffusion import LatentDiffusion
from runner.types import Anchor, Controls, Scene


def guided_sampling(
    generator: LatentDiffusion, controls: Controls, anchor: Anchor, loss: Callable[[Scene], Float[Tensor, " b"]],
    strength: float,
) -> Float[Tensor, "b 3 h w"]:  # fmt: skip
    """Pictures of one pass through the chain, the predicted noise of every step moved along the gradient of the loss.

    The gradient is that of the loss at the decoded x0-prediction of the step alone, as in DVCE (Augustin et al., 2022)
    and LDCE (Farid et al., 2023), normalised per sample: ε̂ = ε + strength √d ∇L / |∇L|, d the number of a latent's
    values, √d the expected length of the noise.
    """
    schedule, z = generator.schedule, controls["latent"].detach()
    latent = z
    for i in range(len(schedule)):
        with torch.enable_grad():
            leaf = z.clone().requires_grad_()
            text, null = (getattr(anchor, key)[:, i] + controls[key][:, i] for key in ("text", "null"))
            following, x0 = generator.step(leaf, text, null, i, anchor)
            image = generator.decode(x0)
            total = loss(Scene(image, x0, image.unsqueeze(1))).sum()
            gradient = torch.autograd.grad(total, leaf)[0]
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
        moved = strength * gradient[0].numel() ** 0.5 * gradient / length[:, None, None, None]
        alpha, alpha_next = schedule.alphas[i], schedule.alphas_next[i]
        # A change of ε moves the x0-prediction by −√(1−ᾱ)/√ᾱ of it, and the next latent accordingly.
        per_noise = -((1 - alpha) / alpha).sqrt()
        held = (anchor.blend > i / len(schedule))[:, None, None, None]
        free = torch.where(held, anchor.latent_mask, torch.ones_like(anchor.latent_mask))
        z = following.detach() + free * (alpha_next.sqrt() * per_noise + (1 - alpha_next).sqrt()) * moved
        latent = x0.detach() + per_noise * moved
    with torch.no_grad():
        return generator.decode(latent)
