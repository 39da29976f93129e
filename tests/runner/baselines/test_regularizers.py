"""What holds activation maximisation back: each regularizer has an answer that is known by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from classifier_lens.models.generator.pixel_space import shift_images
from classifier_lens.models.seeded_noise import GRAY
from classifier_lens.runner.baselines.regularizers import (
    Regularizer,
    Update,
    alpha_norm,
    blur_matrix,
    bounded_range,
    clip_small_contribution,
    clip_small_norm,
    gaussian_blur,
    l2_ball,
    l2_decay,
    total_variation,
)
from classifier_lens.runner.optimization.loop import NormalizedGradient
from classifier_lens.runner.types import Scene, UserError

EVERY: dict[str, Regularizer] = {
    "l2_decay": partial(l2_decay, rate=0.1),
    "gaussian_blur": partial(gaussian_blur, width=1.0, every=1),
    "clip_small_norm": partial(clip_small_norm, percentile=50),
    "clip_small_contribution": partial(clip_small_contribution, percentile=50),
    "bounded_range": partial(bounded_range, bound=0.2),
    "l2_ball": partial(l2_ball, radius=0.5),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def update(x: Tensor, step: int = 0) -> Update:
    return Update(noise(*x.shape, seed=1) - 0.5, noise(*x.shape, seed=2), step)


def shown(*images: Tensor) -> Scene:
    """One sample whose views are the images."""
    views = torch.stack(images)[None]
    return Scene(views[:, 0], views[:, 0], views)


@pytest.mark.parametrize("name", EVERY)
def test_images_are_regularized_each_for_itself(name: str) -> None:
    x = noise(2, 3, 3, 8, 6)
    whole, now = EVERY[name](x, update(x)), update(x)
    assert whole.shape == x.shape and not torch.equal(whole, x)
    for i in range(2):
        for j in range(3):
            own = Update(now.gradient[i, j], now.start[i, j], now.step)
            torch.testing.assert_close(EVERY[name](x[i, j], own), whole[i, j])


def test_decay_multiplies_what_differs_from_gray() -> None:
    x = noise(3, 4, 4)
    torch.testing.assert_close(l2_decay(x, update(x), 0.25) - GRAY, 0.75 * (x - GRAY))
    assert torch.equal(l2_decay(torch.full((3, 4, 4), GRAY), update(x), 0.3), torch.full((3, 4, 4), GRAY))


@pytest.mark.parametrize("width", [0.3, 1.0, 5.0])
def test_a_blur_keeps_the_mean_and_spreads_a_point_as_a_gaussian_does(width: float) -> None:
    x = noise(3, 9, 12)
    torch.testing.assert_close(gaussian_blur(x, update(x), width, 1).mean(dim=(1, 2)), x.mean(dim=(1, 2)))
    matrix = blur_matrix(64, width)
    torch.testing.assert_close(matrix.sum(dim=0), torch.ones(64))
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(64))
    ratio = (matrix[32, 33] / matrix[32, 32]).item()
    assert ratio == pytest.approx(math.exp(-0.5 / width**2), rel=1e-4)


def test_a_blur_comes_at_every_so_many_updates() -> None:
    x = noise(3, 8, 8)
    changed = [not torch.equal(gaussian_blur(x, update(x, k), 1.0, 4), x) for k in range(9)]
    assert changed == [k in (0, 4, 8) for k in range(9)]
    assert torch.equal(gaussian_blur(x, update(x), 0.0, 1), x)


def test_pixels_with_a_small_norm_become_gray() -> None:
    """Four pixels that differ from gray by 0.1, 0.2, 0.3 and 0.4 in one color."""
    x = torch.full((3, 2, 2), GRAY)
    x[1] += torch.tensor([[0.1, -0.4], [0.3, -0.2]])
    result = clip_small_norm(x, update(x), 50)
    torch.testing.assert_close(result[1] - GRAY, torch.tensor([[0.0, -0.4], [0.3, 0.0]]))
    assert torch.equal(clip_small_norm(x, update(x), 0), x)


def test_pixels_with_a_small_contribution_become_gray() -> None:
    """Large pixels whose gradient is small go; a color that speaks for the class makes up for one against it."""
    x = torch.full((3, 1, 3), GRAY + 0.4)
    gradient = torch.tensor([[[0.0, 1.0, 2.0]], [[0.1, 1.0, -2.0]], [[0.0, 1.0, 0.2]]])
    result = clip_small_contribution(x, Update(gradient, x, 0), 90)
    assert (result[:, 0, 1] == x[:, 0, 1]).all(), "0.4 · 3 is the largest"
    assert (result[:, 0, [0, 2]] == GRAY).all(), "0.4 · 0.1 and 0.4 · 0.2"


def test_a_range_bounds_the_length_of_a_pixels_color() -> None:
    x = torch.full((3, 1, 2), GRAY)
    x[:2, 0, 0] += torch.tensor([0.3, -0.4])
    x[0, 0, 1] += 0.2
    result = bounded_range(x, update(x), 0.25) - GRAY
    torch.testing.assert_close(result[:, 0, 0], torch.tensor([0.15, -0.2, 0.0]))
    torch.testing.assert_close(result[:, 0, 1], torch.tensor([0.2, 0.0, 0.0]))


def test_a_ball_is_landed_on_from_outside_and_nothing_is_moved_inside() -> None:
    start, away = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=3) - 0.5
    x = start + away / away.flatten(1).norm(dim=1)[:, None, None, None] * torch.tensor([0.3, 5.0])[:, None, None, None]
    result = l2_ball(x, Update(x, start, 0), 0.5)
    assert torch.equal(result[0], x[0])
    assert (result[1] - start[1]).norm().item() == pytest.approx(0.5, rel=1e-5)
    torch.testing.assert_close(result[1] - start[1], 0.1 * (x[1] - start[1]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(l2_ball(result, Update(x, start, 0), 0.5), result)


def test_jitter_is_a_shift_and_is_undone() -> None:
    x, by = noise(2, 3, 5, 6), torch.tensor([[1, -2], [0, 3]])
    moved = shift_images(x, by)
    assert torch.equal(shift_images(moved, -by), x)
    assert torch.equal(moved[0, :, 1:, :-2], x[0, :, :-1, 2:]) and torch.equal(moved[1, :, :, 3:], x[1, :, :, :-3])


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0])
def test_the_total_variation_of_an_edge(beta: float) -> None:
    """A step of 0.6 along a column of an 8 x 8 image in each color: 8 edges of 64 pixels, 3 colors."""
    flat, edge = torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.2)
    edge[:, :, 4:] = 0.8
    wanted = 3 * 8 / 64 * (0.6 / 0.3) ** beta
    torch.testing.assert_close(total_variation(shown(edge), beta, 0.3), torch.tensor([wanted]), rtol=1e-4, atol=1e-4)
    both = total_variation(shown(edge, flat), beta, 0.3)
    torch.testing.assert_close(both, torch.tensor([wanted / 2]), rtol=1e-4, atol=1e-4)


def test_the_alpha_norm_of_a_color() -> None:
    """0.3 and 0.4 from gray in two colors are 0.5 in all: twice the unit, to the sixth power."""
    x = torch.full((3, 4, 4), GRAY)
    x[0] += 0.3
    x[2] -= 0.4
    torch.testing.assert_close(alpha_norm(shown(x), 6.0, 0.25), torch.tensor([64.0]))


PENALTIES = {
    "total_variation": partial(total_variation, beta=1.5, unit=0.05),
    "alpha_norm": partial(alpha_norm, alpha=6.0, unit=0.3),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_has_a_gradient_everywhere(name: str) -> None:
    """Where an image is flat and gray it is 0, not NaN."""
    term: Callable[[Scene], Tensor] = PENALTIES[name]
    for x in (torch.full((3, 4, 4), GRAY), noise(3, 4, 4)):
        leaf = x.clone().requires_grad_()
        term(shown(leaf)).sum().backward()
        assert leaf.grad is not None and leaf.grad.isfinite().all()
        assert leaf.grad.any() == (x.std() > 0)


def test_a_normalised_step_has_its_length_whatever_the_gradient() -> None:
    leaf = torch.zeros(2, 2, 3, 4, 4, requires_grad=True)
    method = NormalizedGradient([{"params": [leaf], "lr": 0.5}])
    gradient = noise(2, 2, 3, 4, 4) - 0.5
    gradient[1, 1] = 0.0
    leaf.grad = gradient * torch.tensor([1.0, 1e3])[:, None, None, None, None]
    method.step()
    lengths = leaf.detach().flatten(-3).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.tensor([[0.5, 0.5], [0.5, 0.0]]))
    assert (leaf.detach() * gradient).sum() < 0


@pytest.mark.parametrize(
    ("regularizer", "message"),
    [
        (partial(gaussian_blur, width=1.0, every=0), "every=0"),
        (partial(gaussian_blur, width=-1.0, every=2), "width=-1"),
        (partial(clip_small_norm, percentile=101), "percentile=101"),
        (partial(clip_small_contribution, percentile=-1), "percentile=-1"),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(regularizer: Regularizer, message: str) -> None:
    x = noise(3, 4, 4)
    with pytest.raises(UserError, match=message):
        regularizer(x, update(x))
