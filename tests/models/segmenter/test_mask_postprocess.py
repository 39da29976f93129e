"""Erosion, dilation and blur of masks, on masks whose results are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from classifier_lens.models.segmenter.mask_postprocess import MaskPostprocess
from classifier_lens.runner.types import UserError


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


def test_erosion_removes_specks_before_dilation() -> None:
    mask = square(15, 8, 13)
    mask[..., 2, 2] = 1.0
    assert torch.equal(MaskPostprocess(3, 5, 0.0, 1)(mask), square(15, 7, 14))


def test_an_even_window_takes_its_own_size() -> None:
    grown = MaskPostprocess(0, 4, 0.0, 1)(square(11, 5, 6))
    assert grown.sum() == 16, "one pixel becomes a window of 4 x 4"


def test_an_even_window_extends_further_up_and_left() -> None:
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
        position = torch.arange(200) - 99.0
        assert (steps * position.square()).sum().sqrt().item() == pytest.approx(spread, abs=0.1)
        assert steps.nonzero().min() == 99 - kernel // 2


@pytest.mark.parametrize("kernel", [0, 44])
def test_a_window_has_a_center(kernel: int) -> None:
    with pytest.raises(UserError, match=f"blur_kernel={kernel}: allowed are odd"):
        MaskPostprocess(0, 0, 30.0, kernel)


def test_the_border_is_repeated() -> None:
    """A mask at the border is not eroded from the border, and a mask of the whole image does not change."""
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
