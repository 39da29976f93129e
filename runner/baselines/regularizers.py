"""What activation maximisation in pixels is held back by, as published: what is done with a picture between updates,
and penalties that are terms of the objective.

The papers subtract the mean picture; here grey takes its place.
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
    """What led to a picture: the gradient of the loss before the update, where the picture began, and the update's
    number, from 0."""

    gradient: Float[Tensor, "... 3 h w"]
    start: Float[Tensor, "... 3 h w"]
    step: int


# Pictures after an update, "... 3 h w", to what they become; each for itself.
Regularizer = Callable[[Tensor, Update], Tensor]


def l2_decay(x: Float[Tensor, "... 3 h w"], update: Update, rate: Fraction) -> Float[Tensor, "... 3 h w"]:
    """Differences from grey multiplied by 1 − rate (Yosinski et al., 2015, θ_decay)."""
    return GRAY + (1 - rate) * (x - GRAY)


def gaussian_blur(
    x: Float[Tensor, "... 3 h w"], update: Update, width: BlurSigma, every: Count
) -> Float[Tensor, "... 3 h w"]:  # fmt: skip
    """A Gaussian blur of standard deviation `sigma` in pixels at every so many updates, the picture mirrored at its
    border, so that its mean stays (Yosinski et al., 2015, θ_b_width and θ_b_every)."""
    if every < 1 or width < 0:
        raise UserError(f"gaussian_blur: width={width}, every={every}: allowed are 0 and above, 1 and above")
    if update.step % every or not width:
        return x
    rows, columns = (blur_matrix(side, width).to(x) for side in x.shape[-2:])
    return rows @ x @ columns.T


def blur_matrix(side: int, sigma: float) -> Float[Tensor, "s s"]:
    """The blur of a line of pixels, mirrored at its ends, as a matrix whose rows and columns sum to 1."""
    reach = int(4 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    places = (torch.arange(side)[:, None] + offsets) % (2 * side)
    places = torch.where(places < side, places, 2 * side - 1 - places)
    return torch.zeros(side, side).scatter_add_(1, places, (weights / weights.sum()).expand(side, -1))


def clip_small_norm(
    x: Float[Tensor, "... 3 h w"], update: Update, percentile: Percent
) -> Float[Tensor, "... 3 h w"]:  # fmt: skip
    """Pixels whose difference from grey is below this percentile of the picture's become grey (Yosinski et al., 2015,
    θ_n_pct); 0 for none."""
    return _greyed(x, (x - GRAY).norm(dim=-3), percentile)


def clip_small_contribution(
    x: Float[Tensor, "... 3 h w"], update: Update, percentile: Percent
) -> Float[Tensor, "... 3 h w"]:  # fmt: skip
    """Pixels become grey that the objective would miss least, to first order |Σ_c (x − grey) · gradient|, below this
    percentile of the picture's (Yosinski et al., 2015, θ_c_pct); 0 for none."""
    return _greyed(x, ((x - GRAY) * update.gradient).sum(dim=-3).abs(), percentile)


def _greyed(x: Tensor, sizes: Float[Tensor, "... h w"], percentile: float) -> Tensor:
    """Grey where a pixel's size is below the percentile of its picture's."""
    if not 0 <= percentile <= 100:
        raise UserError(f"percentile={percentile} of small pixels: allowed are 0 … 100")
    bound = sizes.flatten(-2).quantile(percentile / 100, dim=-1)[..., None, None]
    return torch.where((sizes < bound)[..., None, :, :], GRAY, x)


def bounded_range(
    x: Float[Tensor, "... 3 h w"], update: Update, bound: Positive
) -> Float[Tensor, "... 3 h w"]:  # fmt: skip
    """No pixel further from grey than `bound`, L2 over its colours (Mahendran & Vedaldi, 2016, B+)."""
    away = x - GRAY
    return GRAY + away * (bound / away.norm(dim=-3, keepdim=True).clamp(min=1e-12)).clamp(max=1)


def l2_ball(x: Float[Tensor, "... 3 h w"], update: Update, radius: NonNegative) -> Float[Tensor, "... 3 h w"]:
    """No picture further than `radius` from where it began, L2 over all its values."""
    return project_l2_ball(x, update.start, radius)


# Penalties: the mean over a scene's pictures.


def total_variation(scene: Scene, beta: Exponent, unit: Positive) -> Float[Tensor, " b"]:
    """Mean over the pixels of Σ_c (|∇x| / unit)^β, ∇ the differences to the next row and column (Mahendran & Vedaldi,
    2016, R_TVβ with unit V)."""
    x = scene.views
    right = torch.diff(x, dim=-1, append=x[..., -1:])
    down = torch.diff(x, dim=-2, append=x[..., -1:, :])
    squares = (right.square() + down.square()).clamp(min=EPSILON) / unit**2
    return squares.pow(beta / 2).sum(dim=-3).mean(dim=(-2, -1)).mean(dim=1)


def alpha_norm(scene: Scene, alpha: Exponent, unit: Positive) -> Float[Tensor, " b"]:
    """Mean over the pixels of (|x − grey| / unit)^α, L2 over the colours (Mahendran & Vedaldi, 2016, R_α, unit B)."""
    squares = (scene.views - GRAY).square().sum(dim=-3).clamp(min=EPSILON) / unit**2
    return squares.pow(alpha / 2).mean(dim=(-2, -1)).mean(dim=1)
