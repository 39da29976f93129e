"""Noise schedule and sampler steps as pure functions, named after the papers' algorithms.

ᾱ is the cumulative product of (1 − β); a latent at level ᾱ is z = √ᾱ z_0 + √(1 − ᾱ) ε.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from runner.types import UserError


@dataclass(frozen=True)
class Schedule:
    """T sampler steps from noisy to clean: the network's timestep, ᾱ before and ᾱ after each step."""

    timesteps: Int[Tensor, " t"]
    alphas: Float[Tensor, " t"]
    alphas_next: Float[Tensor, " t"]

    def __len__(self) -> int:
        return len(self.timesteps)


def ddim_schedule(
    alphas_cumprod: Float[Tensor, " train_steps"], steps: int, offset: int = 1, final_alpha: float | None = None
) -> Schedule:
    """Leading spacing, as Stable Diffusion's DDIM: T = 20 gives timesteps 951, 901, …, 1.

    `final_alpha` is the level after the last step; by default the first training level (`set_alpha_to_one` off).
    Raises UserError if `steps` is not in 1 … number of training steps.
    """
    trained = len(alphas_cumprod)
    if not 1 <= steps <= trained:
        raise UserError(f"generator.steps={steps}: allowed are 1 … {trained}")
    stride = trained // steps
    timesteps = torch.arange(steps).flip(0) * stride + offset
    before = timesteps - stride
    last = alphas_cumprod[0] if final_alpha is None else torch.tensor(final_alpha)
    alphas_next = torch.where(before >= 0, alphas_cumprod[before.clamp(min=0)], last)
    return Schedule(timesteps, alphas_cumprod[timesteps.clamp(max=trained - 1)], alphas_next)


def predict_x0(z: Tensor, eps: Tensor, alpha: Tensor | float) -> Tensor:
    """The clean latent that a noise prediction implies (DDIM, Eq. 9)."""
    alpha = torch.as_tensor(alpha)
    return (z - (1 - alpha).sqrt() * eps) / alpha.sqrt()


def ddim_step(
    z: Tensor, eps: Tensor, alpha: Tensor | float, alpha_next: Tensor | float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One deterministic DDIM step (η = 0) between two noise levels -> (next latent, x0-prediction).

    With `alpha_next < alpha` the same formula walks back towards noise (DDIM inversion).
    """
    x0 = predict_x0(z, eps, alpha)
    alpha_next = torch.as_tensor(alpha_next)
    return alpha_next.sqrt() * x0 + (1 - alpha_next).sqrt() * eps, x0


def guide(eps_null: Tensor, eps_text: Tensor, w: float) -> Tensor:
    """Classifier-free guidance, ε_null + w (ε_text − ε_null): w = 1 is the text prediction alone."""
    return eps_null + w * (eps_text - eps_null)
