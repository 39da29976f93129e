"""Noise schedule and sampler steps as pure functions, named after the papers' algorithms.

ᾱ is the cumulative product of (1 − β); a latent at level ᾱ is z = √ᾱ z_0 + √(1 − ᾱ) ε.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from classifier_lens.runner.types import UserError

# Of the boundary condition of consistency models, as in all published latent ones: the standard deviation of the data,
# and the factor of timesteps.
SIGMA_DATA, TIMESTEP_SCALE = 0.5, 10.0


@dataclass(frozen=True)
class NoiseSchedule:
    """T sampler steps from noisy to clean: the network's timestep, ᾱ before and ᾱ after each step; v_prediction:
    whether the network predicts v = √ᾱ ε − √(1 − ᾱ) z_0 (Salimans and Ho, 2022, Appendix D), not ε."""

    timesteps: Int[Tensor, " t"]
    alphas_cumprod: Float[Tensor, " t"]
    alphas_cumprod_next: Float[Tensor, " t"]
    v_prediction: bool = False

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def zero_snr_timestep(self) -> int | None:
        """The timestep at ᾱ = 0, where the latent is noise alone; None if the schedule has none."""
        timesteps = self.timesteps[(self.alphas_cumprod > 0).logical_not()]
        return int(timesteps[0]) if len(timesteps) else None

    def shift_noise(self, predicted: Tensor, noise: Tensor, i: int) -> Tensor:
        """The prediction of step i whose ε is that of `predicted` plus `noise`."""
        return predicted + (noise / self.alphas_cumprod[i].sqrt() if self.v_prediction else noise)

    def as_plain_values(self) -> tuple[object, ...]:
        """Timesteps, levels and the kind of prediction, as plain values."""
        return (
            self.timesteps.tolist(),
            self.alphas_cumprod.tolist(),
            self.alphas_cumprod_next.tolist(),
            self.v_prediction,
        )


def leading(trained: int, steps: int, offset: int) -> Int[Tensor, " t"]:
    """Even distances from the clean end, plus `offset`: T = 20 of 1000 with offset 1 gives 951, 901, …, 1."""
    return torch.arange(steps).flip(0) * (trained // steps) + offset


def trailing(trained: int, steps: int, offset: int) -> Int[Tensor, " t"]:
    """Even distances from the noisy end, without an offset: T = 20 of 1000 gives 999, 949, …, 49."""
    return torch.from_numpy(np.round(trained - np.arange(steps) * (trained / steps)).astype(np.int64)) - 1


def linspace(trained: int, steps: int, offset: int) -> Int[Tensor, " t"]:
    """Even distances from end to end, without an offset: T = 20 of 1000 gives 999, 946, …, 0."""
    return torch.from_numpy(np.linspace(0, trained - 1, steps).round()[::-1].astype(np.int64))


TIMESTEP_SPACINGS = {"leading": leading, "trailing": trailing, "linspace": linspace}


def ddim_schedule(
    alphas_cumprod: Float[Tensor, " train_steps"], steps: int, offset: int = 1, final_alpha: float | None = None,
    spacing: str = "leading",
) -> NoiseSchedule:  # fmt: skip
    """The schedule of DDIM, as in diffusers' scheduler; by default that of Stable Diffusion.

    final_alpha: the level after the last step; by default the first training level (`set_alpha_to_one` off); spacing:
    one of `TIMESTEP_SPACINGS`. Every step is as long as one of T even steps, also where timesteps are rounded. Raises
    UserError if `steps` is not in 1 … number of training steps, and for timesteps outside the trained ones.
    """
    trained = len(alphas_cumprod)
    if not 1 <= steps <= trained:
        raise UserError(f"generator.steps={steps}: allowed are 1 … {trained}")
    timesteps = TIMESTEP_SPACINGS[spacing](trained, steps, offset)
    if not 0 <= (first := int(timesteps[0])) < trained:
        raise UserError(
            f"generator.steps={steps}: begins at time {first} (steps_offset={offset}); trained are 0 … {trained - 1}"
        )
    before = timesteps - trained // steps
    last = alphas_cumprod[0] if final_alpha is None else torch.tensor(final_alpha)
    alphas_next = torch.where(before >= 0, alphas_cumprod[before.clamp(min=0)], last)
    return NoiseSchedule(timesteps, alphas_cumprod[timesteps], alphas_next)


def predict_eps(z: Tensor, predicted: Tensor, alpha: Tensor | float, velocity: bool) -> Tensor:
    """ε of a latent z at level ᾱ, from a prediction of v or of ε itself."""
    alpha = torch.as_tensor(alpha)
    return alpha.sqrt() * predicted + (1 - alpha).sqrt() * z if velocity else predicted


def lcm_schedule(
    alphas_cumprod: Float[Tensor, " train_steps"], steps: int, original_inference_steps: int = 50
) -> NoiseSchedule:
    """The schedule of a latent consistency model: T = 4 of 50 gives 999, 759, 499, 259; the last step leads to ᾱ = 1.

    original_inference_steps: number of steps of the solver that the model was distilled from. The model was trained on
    its timesteps alone, of which T at even distances are used. Raises UserError if `steps` or
    `original_inference_steps` is out of range.
    """
    trained = len(alphas_cumprod)
    if not 1 <= original_inference_steps <= trained:
        raise UserError(
            f"generator.sampler.original_inference_steps={original_inference_steps}: allowed are 1 … {trained}"
        )
    if not 1 <= steps <= original_inference_steps:
        raise UserError(f"generator.steps={steps}: allowed are 1 … {original_inference_steps}")
    distilled = torch.arange(original_inference_steps, 0, -1) * (trained // original_inference_steps) - 1
    timesteps = distilled[torch.arange(steps) * original_inference_steps // steps]
    alphas = alphas_cumprod[timesteps]
    return NoiseSchedule(timesteps, alphas, torch.cat([alphas[1:], torch.ones(1)]))


def predict_x0(z: Tensor, predicted: Tensor, alpha: Tensor | float, velocity: bool = False) -> Tensor:
    """The x0-prediction that follows from a prediction of ε, or of v (DDIM, Eq. 9). At ᾱ = 0 none follows from ε."""
    alpha = torch.as_tensor(alpha)
    if velocity:
        return alpha.sqrt() * z - (1 - alpha).sqrt() * predicted
    return (z - (1 - alpha).sqrt() * predicted) / alpha.sqrt()


def ddim_step(
    z: Tensor, predicted: Tensor, alpha: Tensor | float, alpha_next: Tensor | float, velocity: bool = False
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One deterministic DDIM step (η = 0) between two noise levels -> (next latent, x0-prediction). predicted: ε, or v.

    With `alpha_next < alpha` the step leads towards noise (DDIM inversion).
    """
    x0, eps = predict_x0(z, predicted, alpha, velocity), predict_eps(z, predicted, alpha, velocity)
    alpha_next = torch.as_tensor(alpha_next)
    return alpha_next.sqrt() * x0 + (1 - alpha_next).sqrt() * eps, x0


def boundary_scalings(t: Tensor | int) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of a consistency function at timestep t: 1 and 0 at t = 0 (Luo et al., 2023, Eq. 9)."""
    scaled = torch.as_tensor(t) * TIMESTEP_SCALE
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total.sqrt()


def consistency_function(
    z: Tensor, predicted: Tensor, t: Tensor | int, alpha: Tensor | float, velocity: bool = False
) -> Tensor:  # fmt: skip
    """The consistency function f(z, t) = c_skip z + c_out x̂0(z, ε): the end of the trajectory through z (Luo et al.,
    2023, Eq. 9). predicted: ε, or v."""
    c_skip, c_out = (c.to(z) for c in boundary_scalings(t))
    return c_skip * z + c_out * predict_x0(z, predicted, alpha, velocity)


def lcm_step(
    z: Tensor,
    predicted: Tensor,
    noise: Tensor,
    t: Tensor | int,
    alpha: Tensor | float,
    alpha_next: Tensor | float,
    velocity: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step of multistep consistency sampling -> (next latent, x0-prediction): the end of the trajectory, with noise
    of the next level (Luo et al., 2023, Algorithm 3). At `alpha_next` = 1 the noise has no effect. predicted: ε, or
    v."""
    x0 = consistency_function(z, predicted, t, alpha, velocity)
    alpha_next = torch.as_tensor(alpha_next)
    return alpha_next.sqrt() * x0 + (1 - alpha_next).sqrt() * noise, x0


def guidance_embedding(w: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """The embedding of the guidance scale, an input of consistency models: sines, then cosines, of 1000 (w − 1) at
    `width` / 2 frequencies from 1 down to 1e-4."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=w.device) / (half - 1))
    angles = 1000 * (w.float() - 1)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def classifier_free_guidance(null: Tensor, text: Tensor, w: float | Tensor) -> Tensor:
    """Classifier-free guidance of predictions, ε_null + w (ε_text − ε_null): w = 1 is the text prediction alone. It is
    the same for v, since ε is a linear function of v."""
    return null + w * (text - null)
