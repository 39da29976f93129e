"""Classifier guidance: one sampling, guided by the gradient at its x0-predictions, instead of an optimization."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.generator.chain import DiffusionContext
from classifier_lens.models.generator.latent_diffusion import LatentDiffusion
from classifier_lens.runner.types import Controls, Scene, UserError


def check_guidance(generator: LatentDiffusion) -> None:
    """Raise UserError for a step that begins at ᾱ = 0: there, no shift of ε has a finite effect on x0."""
    if (time := generator.sampler.schedule.zero_snr_timestep) is not None:
        raise UserError(
            f"task.baseline=classifier_guidance: shifts the predicted noise, and the generator's scheduler has no "
            f"signal left at time {time} (rescale_betas_zero_snr, ᾱ = 0); allowed are the other baselines, or levels "
            "above 0"
        )


def guided_sampling(
    generator: LatentDiffusion, controls: Controls, context: DiffusionContext,
    loss: Callable[[Scene], Float[Tensor, " b"]], strength: float,
) -> Float[Tensor, "b 3 h w"]:  # fmt: skip
    """Images of one pass through the chain in which the predicted noise of every step is shifted along the gradient of
    the loss.

    The gradient is that of the loss at the decoded x0-prediction of the step alone, as in DVCE (Augustin et al., 2022)
    and LDCE (Farid et al., 2023), normalized per sample: ε̂ = ε + strength √d ∇L / |∇L|, d the number of a latent's
    values, √d the expected norm of the noise.
    """
    z = controls["latent"].detach()
    latent = z
    embeddings = {name: (base + controls[name]).detach() for name, base in context.embeddings.items()}
    for i in range(len(generator)):
        step_embeddings = {name: values[:, i] for name, values in embeddings.items()}
        noise = context.variance_noise[:, i]
        with torch.enable_grad():
            leaf = generator.blend_background(z, i, context).clone().requires_grad_()
            predicted = generator.predict(leaf, step_embeddings, i, context)
            x0 = generator.sampler.advance(leaf, predicted, noise, i)[1]
            image = generator.networks.decode(x0)
            total = loss(Scene(image, x0, image.unsqueeze(1))).sum()
            gradient = torch.autograd.grad(total, leaf)[0]
        norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
        shift = strength * gradient[0].numel() ** 0.5 * gradient / norm[:, None, None, None]
        guided = generator.sampler.schedule.shift_noise(predicted.detach(), shift, i)
        z, latent = generator.sampler.advance(leaf.detach(), guided, noise, i)
    with torch.no_grad():
        return generator.networks.decode(latent)
