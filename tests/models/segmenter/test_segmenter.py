"""Masks by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from classifier_lens.models.segmenter.segmenter import (
    AttentionSegmenter,
    GrabCutSegmenter,
    MaskPostprocess,
    resize_maps,
)
from classifier_lens.runner.types import UserError

ONE = ["a"]  # the words or the name of a picture, where there is one


def square(side: int, low: int, high: int) -> Tensor:
    """A mask (1, 1, side, side) that is 1 for rows and columns low .. high - 1."""
    mask = torch.zeros(1, 1, side, side)
    mask[..., low:high, low:high] = 1.0
    return mask


def test_a_blur_that_is_wider_than_its_image_is_refused() -> None:
    mask = torch.zeros(1, 1, 8, 8)
    assert MaskPostprocess(0, 0, 1.0, 15)(mask).shape == mask.shape
    with pytest.raises(UserError, match="blur_kernel=17: allowed are up to 15 pixels for images of 8 pixels"):
        MaskPostprocess(0, 0, 1.0, 17)(mask)


def test_sizes_of_zero_change_nothing() -> None:
    mask = square(9, 3, 6)
    assert torch.equal(MaskPostprocess(0, 0, 0.0, 1)(mask), mask)


def test_erosion_and_dilation_move_the_edge() -> None:
    assert torch.equal(MaskPostprocess(3, 0, 0.0, 1)(square(11, 3, 8)), square(11, 4, 7))
    assert torch.equal(MaskPostprocess(0, 3, 0.0, 1)(square(11, 3, 8)), square(11, 2, 9))
    assert torch.equal(MaskPostprocess(0, 5, 0.0, 1)(square(11, 3, 8)), square(11, 1, 10))
    assert torch.equal(MaskPostprocess(3, 3, 0.0, 1)(square(11, 3, 8)), square(11, 3, 8))


def test_erosion_removes_specks_before_dilation_could_grow_them() -> None:
    mask = square(15, 8, 13)
    mask[..., 2, 2] = 1.0
    assert torch.equal(MaskPostprocess(3, 5, 0.0, 1)(mask), square(15, 7, 14))


def test_an_even_window_takes_its_own_size() -> None:
    grown = MaskPostprocess(0, 4, 0.0, 1)(square(11, 5, 6))
    assert grown.sum() == 16, "one pixel becomes a window of 4 x 4"


def test_an_even_window_reaches_further_up_and_left() -> None:
    """As published: a dilation by 20 px reaches 9 px up and to the left of a pixel, and 10 px down and to the right."""
    mask = torch.zeros(1, 1, 41, 41)
    mask[..., 20, 20] = 1.0
    rows, columns = MaskPostprocess(0, 20, 0.0, 1)(mask)[0, 0].nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (11, 30, 11, 30)


def test_the_window_bounds_the_blur() -> None:
    """The published Gaussian of 30 px in a window of 45 px spreads an edge by a standard deviation of 12.5 px, one of
    91 px by 22.5 px."""
    edge = torch.zeros(1, 1, 201, 201)
    edge[..., 100:] = 1.0
    for kernel, spread in ((45, 12.5), (91, 22.5)):
        steps = MaskPostprocess(0, 0, 30.0, kernel)(edge)[0, 0, 100].diff()
        place = torch.arange(200) - 99.0
        assert (steps * place.square()).sum().sqrt().item() == pytest.approx(spread, abs=0.1)
        assert steps.nonzero().min() == 99 - kernel // 2


@pytest.mark.parametrize("kernel", [0, 44])
def test_a_window_has_a_center(kernel: int) -> None:
    with pytest.raises(UserError, match=f"blur_kernel={kernel}: allowed are odd"):
        MaskPostprocess(0, 0, 30.0, kernel)


def test_the_border_is_repeated() -> None:
    """A mask that touches the border is not eaten from there, and the whole picture stays whole."""
    edge = square(9, 0, 5)
    assert torch.equal(MaskPostprocess(3, 0, 0.0, 1)(edge), square(9, 0, 4))
    whole = torch.ones(1, 1, 9, 9)
    torch.testing.assert_close(MaskPostprocess(3, 5, 1.5, 5)(whole), whole)


def test_blur_is_a_gaussian_of_its_standard_deviation() -> None:
    mask = torch.zeros(1, 1, 41, 41)
    mask[..., 20:] = 1.0  # an edge between columns 19 and 20, at 19.5
    soft = MaskPostprocess(0, 0, 4.0, 13)(mask)[0, 0, 20]
    assert soft[:20] + soft[20:40].flip(0) == pytest.approx(torch.ones(20), abs=1e-5)
    assert soft[0] < 1e-6 and soft[40] > 1 - 1e-6 and (soft.diff() >= -1e-6).all()
    assert soft[23].item() == pytest.approx(0.5 * (1 + torch.erf(torch.tensor(3.5 / (4 * 2**0.5))).item()), abs=0.05)


def test_the_threshold_is_a_share_of_the_maximum() -> None:
    maps = torch.tensor([[[[0.1, 0.2], [0.4, 0.5]]]])
    images = torch.zeros(1, 3, 2, 2)
    assert AttentionSegmenter(0.5)(images, maps, ONE, ONE).tolist() == [[[[0.0, 0.0], [1.0, 1.0]]]]
    assert AttentionSegmenter(0.3)(images, maps, ONE, ONE).tolist() == [[[[0.0, 1.0], [1.0, 1.0]]]]
    assert AttentionSegmenter(0.3)(images, maps / 10, ONE, ONE).tolist() == [[[[0.0, 1.0], [1.0, 1.0]]]]


def test_masks_have_the_pictures_size_and_are_hard() -> None:
    maps = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = AttentionSegmenter(0.5)(torch.zeros(2, 3, 16, 16), maps, ["a", "b"], ["a", "b"])
    assert masks.shape == (2, 1, 16, 16) and set(masks.unique().tolist()) == {0.0, 1.0}


def test_a_map_of_zeros_gives_an_empty_mask_and_no_nan() -> None:
    mask = AttentionSegmenter(0.3)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 2, 2), ONE, ONE)
    assert mask.eq(0).all()


CUT = GrabCutSegmenter(sure_background=0.1, probable_foreground=0.45, sure_foreground=0.8, iterations=5)


def disc(side: int, background: tuple[float, float, float] = (0.2, 0.6, 0.2)) -> tuple[Tensor, Tensor]:
    """A red disc on a flat ground, (1, 3, side, side), and its mask (1, 1, side, side)."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    mask = (torch.hypot(x - 0.55 * side, y - 0.45 * side) < 0.28 * side).float()[None, None]
    ground = torch.tensor(background).view(1, 3, 1, 1)
    return ground + (torch.tensor((0.9, 0.1, 0.1)).view(1, 3, 1, 1) - ground) * mask, mask


@pytest.mark.parametrize("side", [32, 64])
def test_a_coarse_map_is_cut_along_the_edge_of_the_object(side: int) -> None:
    image, mask = disc(side)
    maps = torch.nn.functional.adaptive_avg_pool2d(mask, 8)
    coarse = AttentionSegmenter(0.45)(image, maps, ONE, ONE)
    assert not torch.equal(coarse, mask)
    assert torch.equal(CUT(image, maps, ONE, ONE), mask)


def test_pictures_are_cut_each_for_itself_and_alike_every_time() -> None:
    images = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    names = ["a", "b", "c"]
    together = CUT(images, maps, names, names)
    alone = torch.cat([CUT(images[i : i + 1], maps[i : i + 1], ONE, names[i : i + 1]) for i in (2, 1, 0)])
    assert torch.equal(together, alone.flip(0)) and torch.equal(together, CUT(images, maps, names, names))


def test_what_the_map_is_certain_of_stands() -> None:
    """Colours that contradict the map move only what lies between its thresholds."""
    image, mask = disc(64)
    maps = torch.nn.functional.adaptive_avg_pool2d(mask.flip(-1), 8)
    cut, large = CUT(image, maps, ONE, ONE), resize_maps(maps, image)
    assert cut[large > 0.8].all() and not cut[large < 0.1].any()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_map_that_leaves_no_choice_is_taken_as_it_is(value: float) -> None:
    """An even map says nothing: everything is the object; an empty one says that nothing is."""
    image, _ = disc(32)
    assert torch.equal(CUT(image, torch.full((1, 1, 8, 8), value), ONE, ONE), torch.full((1, 1, 32, 32), value))
