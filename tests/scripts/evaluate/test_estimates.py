"""Statistics against values known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import KernelInceptionDistance


def test_share_has_wilsons_interval() -> None:
    half = estimates.proportion([True, False] * 10)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.2993, 0.7007), abs=1e-4)
    assert estimates.proportion([True] * 10).high == 1.0


def test_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = estimates.mean(values.tolist())
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_bootstrap_covers_the_truth() -> None:
    draws = np.random.default_rng(2).normal(0.0, 1.0, (40, 30))
    means = [estimates.mean(row.tolist()) for row in draws]
    assert sum(e.low <= 0 <= e.high for e in means) >= 34


def test_bootstrap_is_deterministic_and_takes_constants() -> None:
    assert estimates.median([1.0, 2.0, 5.0, 9.0]) == estimates.median([1.0, 2.0, 5.0, 9.0])
    constant = estimates.mean([2.0, 2.0])
    assert (constant.value, constant.low, constant.high) == (2.0, 2.0, 2.0)


def test_paired_difference_of_known_counts() -> None:
    own, other = [True] * 30 + [False] * 34, [True] * 8 + [False] * 52 + [True] * 4
    found = estimates.paired_difference(own, other)
    up, down = 23 / 66, 5 / 66
    half = 1.959964 * ((up + down - (up - down) ** 2) / 66) ** 0.5
    assert found.value == pytest.approx(18 / 64)
    assert (found.low, found.high) == pytest.approx((up - down - half, up - down + half))
    same = estimates.paired_difference(own, own)
    assert same.value == 0 and -0.1 < same.low < 0 < same.high < 0.1
    few = estimates.paired_difference([False] * 2, [False] * 2)
    assert few.low < -0.5 and few.high > 0.5


def test_psnr_of_known_errors() -> None:
    black = torch.zeros(3, 3, 4, 4)
    others = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 1.0), torch.zeros(3, 4, 4)])
    assert estimates.psnr(black, others).tolist() == pytest.approx([20.0, 0.0, 100.0], abs=1e-4)


def test_iou_of_known_masks() -> None:
    left, top, none = torch.zeros(3, 4, 4, dtype=torch.bool)
    left[:, :2], top[:2] = True, True
    found = estimates.iou(torch.stack([left, left, left, none]), torch.stack([left, top, none, none]))
    assert found.tolist() == pytest.approx([1.0, 4 / 12, 0.0, 1.0])


def test_rms_outside_sees_only_the_outside() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    images, others = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    others[:, :, :2] = 0.9
    assert estimates.rmse_outside(images, others, mask).item() == 0
    others[:, :, 3] = 0.4
    assert estimates.rmse_outside(images, others, mask).item() == pytest.approx((0.16 / 2) ** 0.5)
    assert estimates.rmse_outside(images, others, torch.ones_like(mask)).item() == 0


def naive(x: torch.Tensor, y: torch.Tensor) -> float:
    """The unbiased estimator as a double loop."""
    k = lambda a, b: (float(a @ b) / len(a) + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    own = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    others = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + others - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def normal(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return shift + torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kid_is_the_double_loop() -> None:
    x, y = normal(7, 1), normal(9, 2, 0.5)
    assert KernelInceptionDistance.from_features(x, y).unbiased() == pytest.approx(naive(x, y))


def test_kid_is_what_random_subsets_average_to() -> None:
    x, y = normal(30, 1), normal(30, 2, 0.5)
    distance, draws = KernelInceptionDistance.from_features(x, y), np.random.default_rng(3)
    subsets = [distance.unbiased(draws.permutation(30)[:10], draws.permutation(30)[:10]) for _ in range(2000)]
    assert distance.unbiased() == pytest.approx(np.mean(subsets), abs=4 * np.std(subsets) / len(subsets) ** 0.5)


def test_kid_of_one_distribution_is_near_zero_and_grows_with_a_shift() -> None:
    same, near, far = (
        KernelInceptionDistance.from_features(normal(200, 1), normal(200, 2, s)).unbiased() for s in (0.0, 0.5, 1.0)
    )
    assert abs(same) < 0.1 * near < 0.1 * far


def test_kid_with_own_pairs_is_the_double_loop_over_all() -> None:
    x, y = normal(7, 1), normal(9, 2, 0.5)
    k = lambda a, b: float(((a @ b.T / 5 + 1) ** 3).mean())  # noqa: E731
    assert KernelInceptionDistance.from_features(x, y).biased() == pytest.approx(k(x, x) + k(y, y) - 2 * k(x, y))
    assert (
        KernelInceptionDistance.from_features(x, x).biased() == pytest.approx(0, abs=1e-9)
        and KernelInceptionDistance.from_features(x, y).biased() > 0
    )


def test_resampled_kid_does_not_compare_a_member_with_itself() -> None:
    x, y = normal(4, 1), normal(5, 2)
    rows, columns = np.array([0, 0, 2, 3]), np.arange(5)
    pairs = [(i, j) for i in rows for j in rows if i != j]
    distance = KernelInceptionDistance.from_features(x, y)
    own = np.mean([distance.kernel_xx[i, j] for i, j in pairs])
    others = (distance.kernel_yy.sum() - np.trace(distance.kernel_yy)) / 20
    assert distance.unbiased(rows, columns) == pytest.approx(own + others - 2 * distance.kernel_xy[rows].mean())


def test_kid_ratio_is_one_for_the_same_and_tells_better_from_worse() -> None:
    good, bad, reference = normal(64, 1, 0.5), normal(64, 2, 1.0), normal(256, 3)
    same = estimates.kid_ratio(good, good, reference)
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))
    better = estimates.kid_ratio(good, bad, reference)
    assert better.low < better.value < better.high < 1 < estimates.kid_ratio(bad, good, reference).low
    assert better.note.startswith("KID ")


def test_kid_ratio_stands_where_the_rivals_are_as_near_as_members_of_the_reference() -> None:
    reference, rivals = normal(256, 3), normal(64, 2)
    assert KernelInceptionDistance.from_features(rivals, reference).unbiased() < 0.1
    estimate = estimates.kid_ratio(normal(64, 4, 1.0), rivals, reference)
    assert 1 < estimate.low < estimate.value < estimate.high and np.isfinite(estimate.high)
