"""Augmentation of the classifier's input during the optimization: random crops with noise (DiG-IN, Fig. 13)."""

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
    """crops: per view of a scene; noise_std: standard deviation of the noise in [0, 1] units; power: exponent of the
    uniform random number that determines the side; min_crop_fraction: smallest side as a share of the image where the
    classifier's input size is about that of the image, None for the input size in any case; new_crops_per_prediction:
    whether the x0-predictions of one step have different crops."""

    crops: PerProblemCount
    noise_std: NoiseStd
    power: LearningRate
    min_crop_fraction: PositiveFraction | None
    new_crops_per_prediction: bool

    def __call__(self, scene: Scene, seeds: Sequence[int], step: int, size: int) -> Scene:
        """The scene with crops (b, n · crops, 3, size, size) of its n views; they depend on each sample's seed and the
        step alone."""
        crop_seeds = [
            seed * 10_007 + step + 7_919_000_017 * self.new_crops_per_prediction * scene.steps_left for seed in seeds
        ]
        crops = partial(self._crops, scene.views, crop_seeds, self.min_side(size, scene.views.shape[-1]))
        return replace(scene, views=crops(size), crops_at=crops)

    def min_side(self, size: int, side: int) -> float:
        """The smallest side of a crop in pixels, for the classifier's input size and the image's side."""
        if self.min_crop_fraction is None:
            return min(size, side)
        return size if size <= 0.9 * side else self.min_crop_fraction * side

    def _crops(self, views: Tensor, seeds: Sequence[int], smallest: float, size: int) -> Float[Tensor, "b n 3 s s"]:
        """Crops of views, resized to `size`; their positions depend on the seeds and not on the size."""
        side, n = views.shape[-1], views.shape[1]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        u = torch.stack([torch.rand(n * self.crops, 3, generator=g) for g in generators]).to(views.device)
        noise = torch.stack([torch.randn(n * self.crops, 3, size, size, generator=g) for g in generators])
        crop = u[..., 0] ** self.power * (side - smallest) + smallest
        center = crop[..., None] / 2 + u[..., 1:] * (side - crop)[..., None]
        center, crop = (values.unflatten(1, (n, self.crops)).flatten(0, 1) for values in (center, crop))
        crops = crop_and_resize(views.flatten(0, 1), center, crop, size).unflatten(0, (-1, n)).flatten(1, 2)
        return crops + self.noise_std * noise.to(crops.device)


def crop_and_resize(
    images: Float[Tensor, "b 3 h h"], center: Float[Tensor, "b n 2"], side: Float[Tensor, "b n"], size: int
) -> Float[Tensor, "b n 3 s s"]:
    """Square crops, resized to `size` by bilinear sampling; center (x, y) and side in pixels. Downsampling averages
    areas."""
    b, n = side.shape
    oversampling = max(1, math.ceil(images.shape[-1] / size - 1e-6))
    steps = (torch.arange(size * oversampling, device=images.device) + 0.5) / (size * oversampling) - 0.5
    x = center[..., 0, None] + side[..., None] * steps
    y = center[..., 1, None] + side[..., None] * steps
    grid = torch.stack(
        [x[:, :, None, :].expand(-1, -1, len(steps), -1), y[..., None].expand(-1, -1, -1, len(steps))], -1
    )
    grid = (grid * 2 / images.shape[-1] - 1).to(images.dtype)
    # The n crops of an image are stacked along the rows, so that the image itself is not copied n times.
    views = F.grid_sample(images, grid.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=False)
    views = views.unflatten(2, (n, len(steps))).transpose(1, 2)
    return F.avg_pool2d(views.flatten(0, 1), oversampling).unflatten(0, (b, n)) if oversampling > 1 else views
