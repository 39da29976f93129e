"""Crops with answers known by hand, sampled from (seed, step) alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from classifier_lens.runner.optimization.augmentation import RandomCrops, crop_and_resize
from classifier_lens.runner.types import Scene


def scene(images: Tensor) -> Scene:
    return Scene(images, images, images[:, None])


def ramp(side: int) -> Tensor:
    """One image, (1, 3, side, side): red rises with x, green with y, from 0 to 1 at the pixels' centers."""
    values = torch.linspace(0, 1, side)
    x, y = values.expand(side, side), values[:, None].expand(side, side)
    return torch.stack([x, y, torch.zeros(side, side)])[None]


def cut(images: Tensor, x: float, y: float, side: float, size: int) -> Tensor:
    return crop_and_resize(images, torch.tensor([[[x, y]]]), torch.tensor([[side]]), size)[0, 0]


def test_the_whole_image_at_its_own_size_is_itself() -> None:
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cut(image, 4.0, 4.0, 8.0, 8), image[0])


def test_a_crop_on_the_grid_is_a_slice() -> None:
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    crops = crop_and_resize(image, torch.tensor([[[3.0, 5.0], [6.0, 2.0]]]), torch.tensor([[4.0, 4.0]]), 8)
    # Each pixel of a crop of 4 is asked for at 2 x 2 places around its center, whose mean is the pixel where the
    # image is linear; so compare on an image that is.
    linear = crop_and_resize(ramp(8), torch.tensor([[[3.0, 5.0]]]), torch.tensor([[4.0]]), 4)[0, 0]
    torch.testing.assert_close(linear, ramp(8)[0, :, 3:7, 1:5])
    assert crops.shape == (1, 2, 3, 8, 8) and not torch.equal(crops[0, 0], crops[0, 1])


@pytest.mark.parametrize(("x", "y", "side"), [(8.0, 8.0, 16.0), (6.0, 9.5, 8.0), (10.25, 5.75, 6.3)])
def test_the_mean_of_a_ramp_is_the_value_at_the_center(x: float, y: float, side: float) -> None:
    """Pixel centers lie at 0.5, 1.5, ..., so the ramp's value at a place p is (p - 0.5) / 15."""
    mean = cut(ramp(16), x, y, side, 12).mean(dim=(1, 2))
    torch.testing.assert_close(mean, torch.tensor([(x - 0.5) / 15, (y - 0.5) / 15, 0.0]), rtol=0, atol=2e-3)


def test_shrinking_averages() -> None:
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1.0
    torch.testing.assert_close(cut(stripes, 16.0, 16.0, 32.0, 8), torch.full((3, 8, 8), 0.5))


def test_enlarging_interpolates() -> None:
    image = torch.tensor([0.0, 1.0]).expand(1, 3, 2, 2)
    torch.testing.assert_close(cut(image, 1.0, 1.0, 2.0, 4)[0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def crops_of(images: Tensor, size: int, **changes: float | None) -> RandomCrops:
    settings: dict[str, Any] = {
        "crops": 4, "noise_std": 0.0, "power": 0.3, "min_crop_fraction": 0.75, "new_crops_per_prediction": False,
    }  # fmt: skip
    return RandomCrops(**(settings | changes))


def test_views_follow_from_seed_and_step_alone() -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    augment = crops_of(images, 16, noise_std=0.01)
    views = augment(scene(images), [5, 6, 7], 2, 16).views
    assert views.shape == (3, 4, 3, 16, 16)
    turned = augment(scene(images.flip(0)), [7, 6, 5], 2, 16).views
    torch.testing.assert_close(turned.flip(0), views)
    torch.testing.assert_close(augment(scene(images[1:2]), [6], 2, 16).views, views[1:2])
    assert torch.equal(augment(scene(images), [5, 6, 7], 2, 16).views, views), "the global state plays no part"
    assert not torch.allclose(augment(scene(images), [5, 6, 7], 3, 16).views, views, atol=0.05)
    assert not torch.allclose(augment(scene(images), [8, 6, 7], 2, 16).views[0], views[0], atol=0.05)


def sides_drawn(monkeypatch: pytest.MonkeyPatch, side: int, size: int) -> tuple[Tensor, Tensor]:
    """Sides and centers of 2000 crops of an image of `side` pixels for a classifier of `size`."""
    sampled: list[tuple[Tensor, Tensor]] = []

    def note(images: Tensor, center: Tensor, crop: Tensor, size: int) -> Tensor:
        sampled.append((crop, center))
        return torch.zeros(*crop.shape, 3, size, size)

    monkeypatch.setattr("classifier_lens.runner.optimization.augmentation.crop_and_resize", note)
    images = torch.zeros(1, 3, side, side)
    crops_of(images, size, crops=2000)(scene(images), [1], 0, size)
    return sampled[0]


@pytest.mark.parametrize(("side", "size", "smallest"), [(16, 8, 8.0), (16, 14, 14.0), (16, 16, 12.0), (16, 15, 12.0)])
def test_crops_lie_inside_the_image(
    monkeypatch: pytest.MonkeyPatch, side: int, size: int, smallest: float
) -> None:  # fmt: skip
    """Sides are u^0.3 (H - m) + m: m is the classifier's size up to 0.9 H, above it 0.75 H."""
    crop, center = sides_drawn(monkeypatch, side, size)
    assert crop.min() >= smallest and crop.max() <= side
    assert crop.min() < smallest + 0.25 * (side - smallest) and crop.max() > side - 0.01
    assert (center - crop[..., None] / 2 >= -1e-4).all() and (center + crop[..., None] / 2 <= side + 1e-4).all()
    share = ((crop - smallest) / (side - smallest)).mean().item()
    assert share == pytest.approx(1 / 1.3, abs=0.02), "the mean of u^0.3 is 1 / 1.3"


def test_noise_has_its_standard_deviation() -> None:
    images = torch.full((2, 3, 16, 16), 0.5)
    views = crops_of(images, 16, noise_std=0.05)(scene(images), [1, 2], 0, 16).views
    assert (views - 0.5).std().item() == pytest.approx(0.05, rel=0.05)
    assert abs((views - 0.5).mean().item()) < 0.005


def test_gradients_reach_the_image_of_their_own_sample() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    views = crops_of(images, 8)(scene(images), [1, 2], 0, 8).views
    (gradient,) = torch.autograd.grad(views[1].sum(), images)
    assert gradient[0].abs().sum() == 0 and (gradient[1] > 0).float().mean() > 0.9


def test_crops_of_another_size_show_the_same_regions() -> None:
    """A classifier of 8 px and one of 16 px: each crop of one is the other's, seen finer."""
    shown = crops_of(ramp(32), 8)(scene(ramp(32)), [3], 1, 8)
    small, large = shown.views_at(8), shown.views_at(16)
    assert small is shown.views and large.shape == (1, 4, 3, 16, 16)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(large[0], 2), small[0], rtol=0, atol=1e-2)
    assert not torch.allclose(small[0, 0], small[0, 1], atol=0.02)
    assert torch.equal(shown.views_at(16), large)


def test_an_image_that_is_not_cut_is_its_own_view_at_any_size() -> None:
    plain = scene(ramp(32))
    assert plain.views_at(8) is plain.views and plain.views_at(64) is plain.views


def test_predictions_of_a_step_are_cut_alike_or_anew() -> None:
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    last, before = Scene(images, images, images[:, None], 0), Scene(images, images, images[:, None], 1)
    same, anew = crops_of(images, 8, noise_std=0.01), crops_of(images, 8, noise_std=0.01, new_crops_per_prediction=True)
    assert torch.equal(same(last, [4], 2, 8).views, same(before, [4], 2, 8).views)
    assert torch.equal(anew(last, [4], 2, 8).views, same(last, [4], 2, 8).views)
    assert not torch.allclose(anew(before, [4], 2, 8).views, anew(last, [4], 2, 8).views, atol=0.05)


@pytest.mark.parametrize(("size", "smallest"), [(8, 8), (15, 15), (16, 16), (24, 16)])
def test_without_a_share_the_smallest_crop_has_the_classifiers_size(size: int, smallest: float) -> None:
    """As published: nothing is cut where the classifier sees as much as the image has."""
    assert crops_of(ramp(16), size, min_crop_fraction=None).min_side(size, 16) == smallest
