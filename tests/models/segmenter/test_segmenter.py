"""Masks from attention maps whose results are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from classifier_lens.models.segmenter.segmenter import AttentionSegmenter, GrabCutSegmenter, resize_maps

ONE = ["a"]  # the words or the name of a single image


def test_the_threshold_is_relative_to_the_maximum() -> None:
    maps = torch.tensor([[[[0.1, 0.2], [0.4, 0.5]]]])
    images = torch.zeros(1, 3, 2, 2)
    assert AttentionSegmenter(0.5)(images, maps, ONE, ONE).tolist() == [[[[0.0, 0.0], [1.0, 1.0]]]]
    assert AttentionSegmenter(0.3)(images, maps, ONE, ONE).tolist() == [[[[0.0, 1.0], [1.0, 1.0]]]]
    assert AttentionSegmenter(0.3)(images, maps / 10, ONE, ONE).tolist() == [[[[0.0, 1.0], [1.0, 1.0]]]]


def test_masks_have_the_size_of_the_image_and_are_binary() -> None:
    maps = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = AttentionSegmenter(0.5)(torch.zeros(2, 3, 16, 16), maps, ["a", "b"], ["a", "b"])
    assert masks.shape == (2, 1, 16, 16) and set(masks.unique().tolist()) == {0.0, 1.0}


def test_a_map_of_zeros_gives_an_empty_mask_and_no_nan() -> None:
    mask = AttentionSegmenter(0.3)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 2, 2), ONE, ONE)
    assert mask.eq(0).all()


CUT = GrabCutSegmenter(sure_background=0.1, probable_foreground=0.45, sure_foreground=0.8, iterations=5)


def disc(side: int, background: tuple[float, float, float] = (0.2, 0.6, 0.2)) -> tuple[Tensor, Tensor]:
    """A red disc on a uniform background, (1, 3, side, side), and its mask (1, 1, side, side)."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    mask = (torch.hypot(x - 0.55 * side, y - 0.45 * side) < 0.28 * side).float()[None, None]
    ground = torch.tensor(background).view(1, 3, 1, 1)
    return ground + (torch.tensor((0.9, 0.1, 0.1)).view(1, 3, 1, 1) - ground) * mask, mask


@pytest.mark.parametrize("side", [32, 64])
def test_a_coarse_map_is_refined_along_the_edge_of_the_object(side: int) -> None:
    image, mask = disc(side)
    maps = torch.nn.functional.adaptive_avg_pool2d(mask, 8)
    coarse = AttentionSegmenter(0.45)(image, maps, ONE, ONE)
    assert not torch.equal(coarse, mask)
    assert torch.equal(CUT(image, maps, ONE, ONE), mask)


def test_masks_do_not_depend_on_the_batch_and_are_deterministic() -> None:
    images = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    names = ["a", "b", "c"]
    together = CUT(images, maps, names, names)
    alone = torch.cat([CUT(images[i : i + 1], maps[i : i + 1], ONE, names[i : i + 1]) for i in (2, 1, 0)])
    assert torch.equal(together, alone.flip(0)) and torch.equal(together, CUT(images, maps, names, names))


def test_pixels_above_and_below_the_thresholds_are_fixed() -> None:
    """Colors that contradict the map change only pixels between its thresholds."""
    image, mask = disc(64)
    maps = torch.nn.functional.adaptive_avg_pool2d(mask.flip(-1), 8)
    cut, large = CUT(image, maps, ONE, ONE), resize_maps(maps, image)
    assert cut[large > 0.8].all() and not cut[large < 0.1].any()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_map_without_object_or_background_is_not_refined(value: float) -> None:
    """A constant map marks everything as the object, an empty one nothing."""
    image, _ = disc(32)
    assert torch.equal(CUT(image, torch.full((1, 1, 8, 8), value), ONE, ONE), torch.full((1, 1, 32, 32), value))
