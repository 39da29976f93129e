"""Inversion: from an image's latent to inputs of the sampler that reproduce it (null-text and edit-friendly)."""

from __future__ import annotations

from collections.abc import Callable, Container

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator.noise_schedule import (
    NoiseSchedule,
    classifier_free_guidance,
    ddim_step,
    predict_eps,
)
from classifier_lens.runner.logging.loop_progress import track_progress

# (latents, timestep, text embeddings) -> prediction, ε or v as the schedule says
PredictFn = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def ddim_invert(
    predict: PredictFn, z0: Float[Tensor, "b c y x"], text: Float[Tensor, "b l d"], schedule: NoiseSchedule
) -> Float[Tensor, "b t1 c y x"]:
    """DDIM inversion with the text branch alone (guidance 1): the latents of all levels from noisy to clean, z_T first,
    z_0 last.

    The noise at each level is predicted with the timestep of the next, noisier level (Mokady et al., 2022).
    """
    trajectory = [z0]
    for i in reversed(range(len(schedule))):
        z = trajectory[-1]
        predicted = predict(z, schedule.timesteps[i], text)
        eps = predict_eps(z, predicted, schedule.alphas_cumprod[i], schedule.v_prediction)
        trajectory.append(ddim_step(z, eps, schedule.alphas_cumprod_next[i], schedule.alphas_cumprod[i])[0])
    return torch.stack(trajectory[::-1], dim=1)


def null_text_inversion(
    predict: PredictFn, trajectory: Float[Tensor, "b t1 c y x"], text: Float[Tensor, "b l d"],
    null: Float[Tensor, "b l d"], schedule: NoiseSchedule, w: float, lr: float = 0.01, inner_steps: int = 10,
    tolerance: float = 1e-5, tolerance_growth: float = 2e-5, guidance_interval: Container[int] | None = None,
    last_update: bool = False,
) -> Float[Tensor, "b t l d"]:  # fmt: skip
    """Null embeddings N_t per sampler step with which the guided chain follows the recorded latents (Mokady et al.,
    2022).

    From noisy to clean, each N_t starts from the previous one and is optimized by Adam at `lr * (1 - i / 100)`, in at
    most `inner_steps` steps. Each sample stops by itself at an error below `tolerance + i * tolerance_growth` (mean
    square), and is not computed further; last_update: whether the update with the gradient of that error is still made.
    Steps outside `guidance_interval`, None for all steps, have the N_t of the previous one.
    """
    z, null_embeddings = trajectory[:, 0], []
    for i in track_progress(range(len(schedule)), "steps are inverted"):
        t, levels = (
            schedule.timesteps[i],
            (schedule.alphas_cumprod[i], schedule.alphas_cumprod_next[i], schedule.v_prediction),
        )
        with torch.no_grad():
            text_prediction = predict(z, t, text)
        if guidance_interval is not None and i not in guidance_interval:
            null_embeddings.append(null.detach())
            z, _ = ddim_step(z, text_prediction, *levels)
            continue
        target, z_next = trajectory[:, i + 1], torch.empty_like(z)
        null = null.detach().clone().requires_grad_()
        adam = torch.optim.Adam([null], lr=lr * (1 - i / 100))
        rows = torch.arange(len(z), device=z.device)  # the samples that have not stopped
        for _ in range(inner_steps):
            guided = classifier_free_guidance(predict(z[rows], t, null[rows]), text_prediction[rows], w)
            step, _ = ddim_step(z[rows], guided, *levels)
            z_next[rows] = step.detach()
            error = ((step - target[rows]) ** 2).flatten(1).mean(dim=1)
            continues = error.detach() >= tolerance + i * tolerance_growth
            updated = continues | last_update
            if not updated.any():
                rows = rows[continues]
                break
            adam.zero_grad()
            error[updated].sum().backward()
            null_after = null.detach().clone()
            adam.step()
            with torch.no_grad():
                null_after[rows[updated]] = null[rows[updated]]
                null.copy_(null_after)
            rows = rows[continues]
            if not len(rows):
                break
        null_embeddings.append(null.detach())
        rows = torch.arange(len(z), device=z.device) if last_update else rows
        if len(rows):  # z_next does not have the effect of their last update
            with torch.no_grad():
                guided = classifier_free_guidance(predict(z[rows], t, null[rows]), text_prediction[rows], w)
                z_next[rows], _ = ddim_step(z[rows], guided, *levels)
        z = z_next
    return torch.stack(null_embeddings, dim=1)


@torch.no_grad()
def edit_friendly_inversion(
    predict_x0: Callable[[Tensor, int], Tensor], z0: Float[Tensor, "b c y x"], noise: Float[Tensor, "b t c y x"],
    schedule: NoiseSchedule,
) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b t c y x"]]:  # fmt: skip
    """Start latent and noise of each step with which consistency sampling returns to z0.

    As in edit-friendly DDPM inversion (Huberman-Spiegelglas et al., 2024): the chain is given the latents
    z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε_t of independent noises ε_t, by the noise of each step that leads to the next one,
    n_t = (z_{t−1} − √ᾱ_{t−1} x̂0) / √(1 − ᾱ_{t−1}); for the last step it is the offset z_0 − x̂0.

    predict_x0: (latents, step) -> x0-prediction; noise: ε_t of every step.
    """
    levels = [(alpha.sqrt(), (1 - alpha).sqrt()) for alpha in schedule.alphas_cumprod]
    noisy = [a * z0 + s * noise[:, i] for i, (a, s) in enumerate(levels)]
    constants, z = [], noisy[0]
    for i in range(len(noisy)):
        x0 = predict_x0(z, i)
        if i + 1 < len(noisy):
            a, s = levels[i + 1]
            constants.append((noisy[i + 1] - a * x0) / s)
            # Computed as in the chain: noisy[i + 1] may differ in the last digit, which a network in half precision may
            # round to another number.
            z = a * x0 + s * constants[-1]
        else:
            constants.append(z0 - x0)
    return noisy[0], torch.stack(constants, dim=1)
