"""Distances of a scene from the original in the preserved region: one value per sample, 0 for the original."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.types import Reference, Scene, Term


def latent_distance(reference: Reference) -> Term:
    """m((1 − S_VAE) |z_0 − E(x̂)|²), m the mean over all elements (DiG-IN, Eq. 4)."""

    def term(scene: Scene) -> Float[Tensor, " b"]:
        return ((1 - reference.latent_mask) * (scene.latent - reference.original_latent) ** 2).flatten(1).mean(dim=1)

    return term


def pixel_distance(reference: Reference) -> Term:
    """m((1 − S_PX) |x − x̂|²), m the mean over all elements, images in [0, 1] (DiG-IN, Eq. 4)."""

    def term(scene: Scene) -> Float[Tensor, " b"]:
        return ((1 - reference.mask) * (scene.image - reference.original) ** 2).flatten(1).mean(dim=1)

    return term


def distances(reference: Reference, weights: Mapping[str, float]) -> dict[str, tuple[float, Term]]:
    """Both distances with their weights w_VAE and w_PX, for an objective; without a generator there are no latents, and
    that of pixels is all."""
    in_pixels = {"pixel_distance": (weights["pixel_distance"], pixel_distance(reference))}
    if reference.original_latent.shape[1] == 0:
        return in_pixels
    return {"latent_distance": (weights["latent_distance"], latent_distance(reference)), **in_pixels}
