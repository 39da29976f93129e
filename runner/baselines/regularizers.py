"""Regularizers of activation maximization in pixels, as published: changes of an image after every update, and
penalties that are terms of the objective.

The papers subtract the mean image of the training set; here gray takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.seeded_noise import GRAY
from classifier_lens.runner.configuration.value_ranges import (
    BlurSigma,
    Count,
    Exponent,
    Fraction,
    NonNegative,
    Percent,
    Positive,
)
from classifier_lens.runner.types import Scene, UserError
from classifier_lens.tasks.units.feature_attack import project_l2_ball

EPSILON = 1e-12  # squared step below which an edge has no gradient


@dataclass(frozen=True)
class Update:
    """gradient: of the loss before the update; start: the initial image; step: the update's number, from 0."""

    gradient: Float[Tensor, "... 3 h w"]
    start: Float[Tensor, "... 3 h w"]
    step: int


# From images after an update, "... 3 h w", to regularized ones; each image by itself.
Regularizer = Callable[[Tensor, Update], Tensor]


def l2_decay(x: Float[Tensor, "... 3 h w"], update: Update, rate: Fraction) -> Float[Tensor, "... 3 h w"]:
    """Differences from gray multiplied by 1 − rate (Yosinski et al., 2015, θ_decay)."""
    return GRAY + (1 - rate) * (x - GRAY)


def gaussian_blur(
    x: Float[Tensor, "... 3 h w"], update: Update, width: BlurSigma, every: Count
) -> Float[Tensor, "... 3 h w"]:  # fmt: skip
    """A Gaussian blur of standard deviation `width` in pixels at every `every`-th update, the image mirrored at its
    border, so that its mean does not change (Yosinski et al., 2015, θ_b_width and θ_b_every)."""
    if every < 1 or width < 0:
        raise UserError(f"gaussian_blur: width={width}, every={every}: allowed are 0 and above, 1 and above")
    if update.step % every or not width:
        return x
    rows, columns = (blur_matrix(side, width).to(x) for side in x.shape[-2:])
    return rows @ x @ columns.T


def blur_matrix(side: int, sigma: float) -> Float[Tensor, "s s"]:
    """The blur of a row of pixels, mirrored at its ends, as a matrix whose rows and columns sum to 1."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    positions = (torch.arange(side)[:, None] + offsets) % (2 * side)
    positions = torch.where(positions < side, positions, 2 * side - 1 - positions)
    return torch.zeros(side, side).scatter_add_(1, positions, (weights / weights.sum()).expand(side, -1))


def clip_small_norm(
    x: Float[Tensor, "... 3 h w"], update: Update, percentile: Percent
) -> Float[Tensor, "... 3 h w"]:  # fmt: skip
    """Pixels whose difference from gray is below this percentile of the image's become gray (Yosinski et al., 2015,
    θ_n_pct); 0 for none."""
    return _replace_small(x, (x - GRAY).norm(dim=-3), percentile)


def clip_small_contribution(
    x: Float[Tensor, "... 3 h w"], update: Update, percentile: Percent
) -> Float[Tensor, "... 3 h w"]:  # fmt: skip
    """Pixels whose contribution to the objective, to first order |Σ_c (x − gray) · gradient|, is below this percentile
    of the image's become gray (Yosinski et al., 2015, θ_c_pct); 0 for none."""
    return _replace_small(x, ((x - GRAY) * update.gradient).sum(dim=-3).abs(), percentile)


def _replace_small(x: Tensor, sizes: Float[Tensor, "... h w"], percentile: float) -> Tensor:
    """Gray where a pixel's size is below the percentile of its image's sizes."""
    if not 0 <= percentile <= 100:
        raise UserError(f"percentile={percentile} of small pixels: allowed are 0 … 100")
    bound = sizes.flatten(-2).quantile(percentile / 100, dim=-1)[..., None, None]
    return torch.where((sizes < bound)[..., None, :, :], GRAY, x)


def bounded_range(
    x: Float[Tensor, "... 3 h w"], update: Update, bound: Positive
) -> Float[Tensor, "... 3 h w"]:  # fmt: skip
    """No pixel farther from gray than `bound`, L2 over its channels (Mahendran & Vedaldi, 2016, B+)."""
    difference = x - GRAY
    return GRAY + difference * (bound / difference.norm(dim=-3, keepdim=True).clamp(min=1e-12)).clamp(max=1)


def l2_ball(x: Float[Tensor, "... 3 h w"], update: Update, radius: NonNegative) -> Float[Tensor, "... 3 h w"]:
    """No image farther than `radius` from its start, L2 over all its values."""
    return project_l2_ball(x, update.start, radius)


# Penalties: the mean over the images of a scene.


def total_variation(scene: Scene, beta: Exponent, unit: Positive) -> Float[Tensor, " b"]:
    """Mean over the pixels of Σ_c (|∇x| / unit)^β, ∇ the differences to the next row and column (Mahendran & Vedaldi,
    2016, R_TVβ with unit V)."""
    x = scene.views
    right = torch.diff(x, dim=-1, append=x[..., -1:])
    down = torch.diff(x, dim=-2, append=x[..., -1:, :])
    squares = (right.square() + down.square()).clamp(min=EPSILON) / unit**2
    return squares.pow(beta / 2).sum(dim=-3).mean(dim=(-2, -1)).mean(dim=1)


def alpha_norm(scene: Scene, alpha: Exponent, unit: Positive) -> Float[Tensor, " b"]:
    """Mean over the pixels of (|x − gray| / unit)^α, L2 over the channels (Mahendran & Vedaldi, 2016, R_α, unit B)."""
    squares = (scene.views - GRAY).square().sum(dim=-3).clamp(min=EPSILON) / unit**2
    return squares.pow(alpha / 2).mean(dim=(-2, -1)).mean(dim=1)
