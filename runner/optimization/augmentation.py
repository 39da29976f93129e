"""What the classifier is shown during optimisation: random crops with noise (DiG-IN, Fig. 13)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.configuration.value_ranges import LearningRate, NoiseStd, PerProblemCount, PositiveFraction
from classifier_lens.runner.types import Scene


@dataclass(frozen=True)
class RandomCrops:
    """n_crops: per view of a scene; noise_std: standard deviation in [0, 1] units; side_exponent: of the uniform number
    that sets the side; min_crop_fraction: the smallest side as a share of the image, where the classifier's own size
    would cut nothing, None for that size all the same; new_crops_per_prediction: whether each x0-prediction of a step
    is cut at places of its own."""

    crops: PerProblemCount
    noise_std: NoiseStd
    power: LearningRate
    min_crop_fraction: PositiveFraction | None
    new_crops_per_prediction: bool

    def __call__(self, scene: Scene, seeds: Sequence[int], step: int, size: int) -> Scene:
        """The scene with new views (b, n · crops, 3, size, size) of its n views, sampled from each sample's seed and
        the step alone."""
        drawn = [
            seed * 10_007 + step + 7_919_000_017 * self.new_crops_per_prediction * scene.steps_left for seed in seeds
        ]
        crops = partial(self._crops, scene.views, drawn, self.min_side(size, scene.views.shape[-1]))
        return replace(scene, views=crops(size), crops_at=crops)

    def min_side(self, size: int, side: int) -> float:
        """The smallest side of a crop in pixels, for a classifier's size and the image's side."""
        if self.min_crop_fraction is None:
            return min(size, side)
        return size if size <= 0.9 * side else self.min_crop_fraction * side

    def _crops(self, views: Tensor, seeds: Sequence[int], smallest: float, size: int) -> Float[Tensor, "b n 3 s s"]:
        """Crops of views at a size: their places follow from the seeds whatever the size."""
        side, n = views.shape[-1], views.shape[1]
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        u = torch.stack([torch.rand(n * self.crops, 3, generator=g) for g in draws]).to(views.device)
        noise = torch.stack([torch.randn(n * self.crops, 3, size, size, generator=g) for g in draws])
        crop = u[..., 0] ** self.power * (side - smallest) + smallest
        centre = crop[..., None] / 2 + u[..., 1:] * (side - crop)[..., None]
        centre, crop = (values.unflatten(1, (n, self.crops)).flatten(0, 1) for values in (centre, crop))
        cut = crop_and_resize(views.flatten(0, 1), centre, crop, size).unflatten(0, (-1, n)).flatten(1, 2)
        return cut + self.noise_std * noise.to(cut.device)


def crop_and_resize(
    images: Float[Tensor, "b 3 h h"], center: Float[Tensor, "b n 2"], side: Float[Tensor, "b n"], size: int
) -> Float[Tensor, "b n 3 s s"]:
    """Square crops, centre (x, y) and side in pixels, sampled bilinearly at `size`; shrinking averages areas."""
    b, n = side.shape
    fine = max(1, math.ceil(images.shape[-1] / size - 1e-6))
    steps = (torch.arange(size * fine, device=images.device) + 0.5) / (size * fine) - 0.5
    x = center[..., 0, None] + side[..., None] * steps
    y = center[..., 1, None] + side[..., None] * steps
    grid = torch.stack(
        [x[:, :, None, :].expand(-1, -1, len(steps), -1), y[..., None].expand(-1, -1, -1, len(steps))], -1
    )
    grid = (grid * 2 / images.shape[-1] - 1).to(images.dtype)
    # The n crops of an image are stacked along the rows, so that the image itself is not copied n times.
    views = F.grid_sample(images, grid.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=False)
    views = views.unflatten(2, (n, len(steps))).transpose(1, 2)
    return F.avg_pool2d(views.flatten(0, 1), fine).unflatten(0, (b, n)) if fine > 1 else views
