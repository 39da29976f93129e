"""Statistics of an evaluation: image distances and 95 % intervals. Pure functions: the same input gives the same
output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import bootstrap
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import polynomial_kernel
from torch import Tensor

from classifier_lens.runner.report.totals import SuccessRate

NUM_RESAMPLES = 2000
EPSILON = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A measured value and the ends of its 95 % interval; note: further observations, a few words."""

    value: float
    low: float
    high: float
    note: str = ""


def undefined(note: str) -> Estimate:
    """The estimate of a metric that cannot be computed."""
    return Estimate(float("nan"), float("nan"), float("nan"), note)


# --- intervals -----------------------------------------------------------------------------------------------


def proportion(hits: Sequence[bool], note: str = "") -> Estimate:
    """The share of true values, in [0, 1], with Wilson's interval."""
    rate = SuccessRate(sum(hits), len(hits))
    return Estimate(rate.value, *rate.interval, note)


def paired_difference(hits: Sequence[bool], others: Sequence[bool], note: str = "") -> Estimate:
    """The difference of two shares over the same problems, with the interval of Bonett and Price (2012).

    Unlike a bootstrap interval it does not shrink to a point if the two never differ.
    """
    n, z = len(hits), 1.959964
    gained = sum(a and not b for a, b in zip(hits, others, strict=True))
    lost = sum(b and not a for a, b in zip(hits, others, strict=True))
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    margin = z * ((up + down - (up - down) ** 2) / (n + 2)) ** 0.5
    return Estimate((gained - lost) / n, max(up - down - margin, -1.0), min(up - down + margin, 1.0), note)


def mean(values: Sequence[float], note: str = "") -> Estimate:
    """The mean of at least two values, with its bootstrap interval; for paired differences the paired interval."""
    return bootstrap_estimate(lambda rows: float(np.mean(np.asarray(values)[rows])), (len(values),), note)


def median(values: Sequence[float], note: str = "") -> Estimate:
    """The median of at least two values, with its bootstrap interval."""
    return bootstrap_estimate(lambda rows: float(np.median(np.asarray(values)[rows])), (len(values),), note)


def bootstrap_estimate(statistic: Callable[..., float], sizes: Sequence[int], note: str = "") -> Estimate:
    """A statistic of one or more independent sets and its percentile bootstrap interval (Efron 1979).

    statistic: takes, per set, the indices of a resample, with repetitions; sizes: of the sets, each at least 2. The
    resamples have a fixed seed.
    """
    sets = tuple(np.arange(size) for size in sizes)
    with np.errstate(invalid="ignore"):  # a resample may be infinite
        interval = bootstrap(
            sets, statistic, n_resamples=NUM_RESAMPLES, vectorized=False, confidence_level=0.95, method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    return Estimate(statistic(*sets), float(interval.low), float(interval.high), note)


# --- images --------------------------------------------------------------------------------------------------


def psnr(images: Float[Tensor, "b 3 h w"], others: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio per image in dB, for images in [0, 1]; equal images count as 100 dB."""
    return -10 * (images - others).square().flatten(1).mean(dim=1).clamp(min=1e-10).log10()


def iou(masks: Bool[Tensor, "b h w"], others: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Intersection over union per pair of masks, in [0, 1]; 1 for two empty masks."""
    union = (masks | others).flatten(1).sum(dim=1)
    common = (masks & others).flatten(1).sum(dim=1)
    return torch.where(union == 0, 1.0, common / union.clamp(min=1))


def rmse_outside(
    images: Float[Tensor, "b 3 h w"], others: Float[Tensor, "b 3 h w"], masks: Bool[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """Root of the mean squared difference over the pixels outside the mask and the channels; 0 if there are none."""
    outside = (~masks).flatten(1).float()
    squares = (images - others).square().mean(dim=1).flatten(1)
    return ((squares * outside).sum(dim=1) / outside.sum(dim=1).clamp(min=1)).sqrt()


def roc_auc(positives: Sequence[float], negatives: Sequence[float], note: str) -> Estimate:
    """The area under the ROC curve of a value that should be higher for positives; both are resampled. Undefined if
    either is empty."""
    if not positives or not negatives:
        return undefined(note)
    high, low = np.array(positives), np.array(negatives)

    def area(rows: np.ndarray, columns: np.ndarray) -> float:
        labels = np.repeat([1, 0], [len(rows), len(columns)])
        return float(roc_auc_score(labels, np.concatenate([high[rows], low[columns]])))

    return bootstrap_estimate(area, (len(high), len(low)), note)


# --- sets of images ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelInceptionDistance:
    """Kernel inception distance between two sets of features (Binkowski et al. 2018, "Demystifying MMD GANs"): the
    squared maximum mean discrepancy with the kernel (x·y / d + 1)³ over the whole sets."""

    kernel_xx: np.ndarray  # (n, n) kernel of the first set
    kernel_yy: np.ndarray  # (m, m) of the second
    kernel_xy: np.ndarray  # (n, m)

    @staticmethod
    def from_features(features: Float[Tensor, "n f"], others: Float[Tensor, "m f"]) -> KernelInceptionDistance:
        """The kernels of two sets of at least two members each."""
        x, y = (f.double().cpu().numpy() for f in (features, others))
        return KernelInceptionDistance(
            *(polynomial_kernel(a, b, degree=3, coef0=1.0) for a, b in ((x, x), (y, y), (x, y)))
        )

    def unbiased(self, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> float:
        """The distance between the members with these indices, all by default, without pairs of a member and itself;
        the usual average over random subsets estimates it. It is negative for half of the sets of one distribution.

        A member that is sampled twice is not compared with itself, so that resampling keeps the estimate unbiased.
        """
        x, y = self._counts(rows, columns)
        return float(_pairs(self.kernel_xx, x) + _pairs(self.kernel_yy, y) - 2 * self._cross(x, y))

    def biased(self, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> float:
        """The distance with pairs of a member and itself, 0 or more: two samples of one distribution have a distance
        that depends on their sizes, so that a ratio of two distances at equal sizes exists. A repeated member counts as
        another one."""
        x, y = self._counts(rows, columns)
        return float(_all(self.kernel_xx, x) + _all(self.kernel_yy, y) - 2 * self._cross(x, y))

    def _counts(self, rows: np.ndarray | None, columns: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """How often each member of the two sets is in the indices."""
        n, m = self.kernel_xy.shape
        x = np.ones(n) if rows is None else np.bincount(rows, minlength=n).astype(float)
        return x, np.ones(m) if columns is None else np.bincount(columns, minlength=m).astype(float)

    def _cross(self, x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ self.kernel_xy @ y / (x.sum() * y.sum()))


def _pairs(kernel: np.ndarray, counts: np.ndarray) -> float:
    """Mean of the kernel over pairs of different members; for a single member, its own value."""
    pairs = counts.sum() ** 2 - counts @ counts
    if pairs == 0:
        return float(counts @ np.diag(kernel) / counts.sum())
    return float((counts @ kernel @ counts - counts**2 @ np.diag(kernel)) / pairs)


def _all(kernel: np.ndarray, counts: np.ndarray) -> float:
    """Mean of the kernel over all pairs, of which a share 1 / n is a member and itself."""
    diagonal_mean = counts @ np.diag(kernel) / counts.sum()
    return float(diagonal_mean / counts.sum() + (1 - 1 / counts.sum()) * _pairs(kernel, counts))


def kid_ratio(
    features: Float[Tensor, "n f"], baseline_features: Float[Tensor, "n f"], reference: Float[Tensor, "m f"]
) -> Estimate:
    """KID(features, reference) over KID(baseline_features, reference); row i of both belongs to the same problem.

    Rows are resampled in pairs, the reference separately. Pairs of an image and itself count, see
    `KernelInceptionDistance.biased`; the note has the distances without them.
    """
    kid, baseline_kid = (
        KernelInceptionDistance.from_features(features, reference),
        KernelInceptionDistance.from_features(baseline_features, reference),
    )

    def ratio(rows: np.ndarray, columns: np.ndarray) -> float:
        return kid.biased(rows, columns) / max(baseline_kid.biased(rows, columns), EPSILON)

    note = f"KID {kid.biased():.3f} against {baseline_kid.biased():.3f}"
    note += f"; unbiased {kid.unbiased():.3f}, {baseline_kid.unbiased():.3f}"
    return bootstrap_estimate(ratio, (len(features), len(reference)), note)
