"""From a picture's latent to a start latent and null embeddings that reproduce it (null-text inversion)."""

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

# (latents, timestep, text embeddings) -> prediction, of what the schedule says
PredictFn = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def ddim_invert(
    predict: PredictFn, z0: Float[Tensor, "b c y x"], text: Float[Tensor, "b l d"], schedule: NoiseSchedule
) -> Float[Tensor, "b t1 c y x"]:
    """DDIM inversion with the text branch alone (guidance 1): all latents from noisy to clean, z_T first, z_0 last.

    The noise at each level is predicted with the timestep of the level it leads to (Mokady et al., 2022).
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
    """Per sampler step an N_t with which the guided chain lands on the recorded latents (Mokady et al., 2022).

    From noisy to clean, each N_t starts from the one before and is fitted by Adam at `lr * (1 - i / 100)`, at
    most `inner_steps` times. A sample stops for itself below `tolerance + i * tolerance_growth` (mean square), and is
    not computed further; last_update: whether the update that follows that loss is still made. Steps that are not
    among the `guidance_interval` ones, None for all, keep the N_t of the one before.
    """
    z, found = trajectory[:, 0], []
    for i in track_progress(range(len(schedule)), "steps are inverted"):
        t, levels = (
            schedule.timesteps[i],
            (schedule.alphas_cumprod[i], schedule.alphas_cumprod_next[i], schedule.v_prediction),
        )
        with torch.no_grad():
            own = predict(z, t, text)
        if guidance_interval is not None and i not in guidance_interval:
            found.append(null.detach())
            z, _ = ddim_step(z, own, *levels)
            continue
        wanted, landed = trajectory[:, i + 1], torch.empty_like(z)
        null = null.detach().clone().requires_grad_()
        adam = torch.optim.Adam([null], lr=lr * (1 - i / 100))
        rows = torch.arange(len(z), device=z.device)  # the samples that have not stopped
        for _ in range(inner_steps):
            step, _ = ddim_step(
                z[rows], classifier_free_guidance(predict(z[rows], t, null[rows]), own[rows], w), *levels
            )
            landed[rows] = step.detach()
            error = ((step - wanted[rows]) ** 2).flatten(1).mean(dim=1)
            going = error.detach() >= tolerance + i * tolerance_growth
            moving = going | last_update
            if not moving.any():
                rows = rows[going]
                break
            adam.zero_grad()
            error[moving].sum().backward()
            before = null.detach().clone()
            adam.step()
            with torch.no_grad():
                before[rows[moving]] = null[rows[moving]]
                null.copy_(before)
            rows = rows[going]
            if not len(rows):
                break
        found.append(null.detach())
        unseen = torch.arange(len(z), device=z.device) if last_update else rows
        if len(unseen):  # their last update has not been looked at
            with torch.no_grad():
                guided_by = classifier_free_guidance(predict(z[unseen], t, null[unseen]), own[unseen], w)
                landed[unseen], _ = ddim_step(z[unseen], guided_by, *levels)
        z = landed
    return torch.stack(found, dim=1)


@torch.no_grad()
def edit_friendly_inversion(
    end: Callable[[Tensor, int], Tensor], z0: Float[Tensor, "b c y x"], noise: Float[Tensor, "b t c y x"],
    schedule: NoiseSchedule,
) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b t c y x"]]:  # fmt: skip
    """Start latent and per-step constants with which consistency sampling returns to z0.

    As edit-friendly DDPM inversion (Huberman-Spiegelglas et al., 2024): the latents z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε_t of
    independent noises ε_t are taken for the chain's own, and what each step has to add to get to the next one,
    n_t = (z_{t−1} − √ᾱ_{t−1} x̂0) / √(1 − ᾱ_{t−1}), is kept; of the last step the offset z_0 − x̂0.

    end: (latents, step) -> x0-prediction; noise: ε of every step.
    """
    levels = [(alpha.sqrt(), (1 - alpha).sqrt()) for alpha in schedule.alphas_cumprod]
    noisy = [a * z0 + s * noise[:, i] for i, (a, s) in enumerate(levels)]
    constants, z = [], noisy[0]
    for i in range(len(noisy)):
        x0 = end(z, i)
        if i + 1 < len(noisy):
            a, s = levels[i + 1]
            constants.append((noisy[i + 1] - a * x0) / s)
            # As the chain computes it: noisy[i + 1] may differ in its last digit, and then round to another number in
            # a network of half precision.
            z = a * x0 + s * constants[-1]
        else:
            constants.append(z0 - x0)
    return noisy[0], torch.stack(constants, dim=1)
