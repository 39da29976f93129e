"""Erosion, dilation and blur of a mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from classifier_lens.runner.configuration.value_ranges import BlurSigma, PixelDistance, Pixels
from classifier_lens.runner.types import UserError


@dataclass(frozen=True)
class MaskPostprocess:
    """Erosion, then dilation, then a Gaussian blur of masks; a size of 0 omits the step.

    Args:
        erode_kernel: side of the square window of the erosion in pixels (published for 512 px: 3).
        dilate_kernel: side of the square window of the dilation in pixels (published: 20).
        blur_sigma: standard deviation of the Gaussian in pixels (published: 30).
        blur_kernel: side of the window at which the Gaussian is cut off, in pixels; it bounds how far the blur spreads
            the mask (published: 45).

    Raises:
        UserError: the window of the Gaussian has no center, or is too large for the masks.
    """

    erode_kernel: PixelDistance
    dilate_kernel: PixelDistance
    blur_sigma: BlurSigma
    blur_kernel: Pixels

    def __post_init__(self) -> None:
        if self.blur_sigma and (self.blur_kernel < 1 or self.blur_kernel % 2 == 0):
            raise UserError(
                f"generator.mask_postprocess: blur_kernel={self.blur_kernel}: allowed are odd numbers of pixels"
            )

    def __call__(self, masks: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """The processed masks, in [0, 1]."""
        if self.erode_kernel:
            masks = erode(masks, self.erode_kernel)
        if self.dilate_kernel:
            masks = dilate(masks, self.dilate_kernel)
        if self.blur_sigma:
            self._check_blur_fits(min(masks.shape[-2:]))
            masks = gaussian_blur(masks, [self.blur_kernel] * 2, [self.blur_sigma] * 2)
        return masks.clamp(0, 1)

    def _check_blur_fits(self, side: int) -> None:
        """Raises UserError if masks of `side` pixels, mirrored at their borders, are smaller than the window."""
        if self.blur_kernel // 2 >= side:
            raise UserError(
                f"generator.mask_postprocess: blur_kernel={self.blur_kernel}: allowed are up to {2 * side - 1} pixels "
                f"for images of {side} pixels"
            )


def erode(masks: Float[Tensor, "b 1 h w"], side: int) -> Float[Tensor, "b 1 h w"]:
    """The minimum over a square window of `side` pixels; the border is repeated."""
    return -dilate(-masks, side)


def dilate(masks: Float[Tensor, "b 1 h w"], side: int) -> Float[Tensor, "b 1 h w"]:
    """The maximum over a square window of `side` pixels; the border is repeated.

    A window of an even side extends one pixel further up and to the left, as published.
    """
    low = side // 2
    padded = F.pad(masks, (low, side - 1 - low, low, side - 1 - low), mode="replicate")
    return F.max_pool2d(padded, side, stride=1)
