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

from classifier_lens.runner.configuration.value_ranges import Noise, Rate, Repeats, Share
from classifier_lens.runner.types import Scene


@dataclass(frozen=True)
class RandomCrops:
    """crops: per view of a scene; noise: standard deviation in [0, 1] units; power: of the uniform number that sets the
    side; min_share: the smallest side as a share of the image, where the classifier's own size would cut nothing, None
    for that size all the same; redraw: whether each x0-prediction of a step is cut at places of its own."""

    crops: Repeats
    noise: Noise
    power: Rate
    min_share: Share | None
    redraw: bool

    def __call__(self, scene: Scene, seeds: Sequence[int], step: int, size: int) -> Scene:
        """The scene with new views (b, n · crops, 3, size, size) of its n views, sampled from each sample's seed and
        the step alone."""
        drawn = [seed * 10_007 + step + 7_919_000_017 * self.redraw * scene.steps_left for seed in seeds]
        crops = partial(self._crops, scene.views, drawn, self.smallest(size, scene.views.shape[-1]))
        return replace(scene, views=crops(size), crops=crops)

    def smallest(self, size: int, side: int) -> float:
        """The smallest side of a crop in pixels, for a classifier's size and the image's side."""
        if self.min_share is None:
            return min(size, side)
        return size if size <= 0.9 * side else self.min_share * side

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
        return cut + self.noise * noise.to(cut.device)


def crop_and_resize(
    images: Float[Tensor, "b 3 h h"], centre: Float[Tensor, "b n 2"], side: Float[Tensor, "b n"], size: int
) -> Float[Tensor, "b n 3 s s"]:
    """Square crops, centre (x, y) and side in pixels, sampled bilinearly at `size`; shrinking averages areas."""
    b, n = side.shape
    fine = max(1, math.ceil(images.shape[-1] / size - 1e-6))
    steps = (torch.arange(size * fine, device=images.device) + 0.5) / (size * fine) - 0.5
    x = centre[..., 0, None] + side[..., None] * steps
    y = centre[..., 1, None] + side[..., None] * steps
    grid = torch.stack(
        [x[:, :, None, :].expand(-1, -1, len(steps), -1), y[..., None].expand(-1, -1, -1, len(steps))], -1
    )
    grid = (grid * 2 / images.shape[-1] - 1).to(images.dtype)
    # The n crops of an image are stacked along the rows, so that the image itself is not copied n times.
    views = F.grid_sample(images, grid.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=False)
    views = views.unflatten(2, (n, len(steps))).transpose(1, 2)
    return F.avg_pool2d(views.flatten(0, 1), fine).unflatten(0, (b, n)) if fine > 1 else views
