"""Detection of the spatial dimensions and of the channels of a module's output.

Sizes are ambiguous, so a property of feature maps is tested: a change in one half of the image changes that half of the
map more than the other half.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt, prod, sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

NUM_IMAGE_PAIRS = 2  # pairs of noise images, of which the second replaces halves of the first
MIN_SCORE = 0.05  # least score (1: changes stay in their half) of spatial dimensions
CHANCE_MARGIN = 0.5  # divided by the square root of the number of positions, and added to `MIN_SCORE`
MIN_SCORE_RATIO = 1.5  # least ratio to the score of any other assignment of the dimensions

# Layers whose inputs and outputs have the channels in dimension 1 by definition.
CHANNELS_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)


@dataclass(frozen=True)
class FeatureLayout:
    """The layout of a module's output.

    Args:
        spatial_dims: the dimensions of rows and columns, the dimension of tokens, or none; the others are channels.
        shape: of the output for one image.
    """

    spatial_dims: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def _order(self) -> list[int]:
        """The dimensions in canonical order: channels before rows and columns, tokens before channels."""
        channels = [i for i in range(1, len(self.shape) + 1) if i not in self.spatial_dims]
        return [0, *channels, *self.spatial_dims] if len(self.spatial_dims) == 2 else [0, *self.spatial_dims, *channels]

    def to_canonical(self, output: Tensor) -> Tensor:
        """An output as a feature map "b c y x", as tokens "b l c", or without spatial dimensions as values "b c"."""
        permuted = output.permute(self._order)
        first_channel_dim = 1 if len(self.spatial_dims) != 1 else 2
        end = permuted.ndim - (2 if len(self.spatial_dims) == 2 else 0)
        if end > first_channel_dim:
            return permuted.flatten(first_channel_dim, end - 1)
        return permuted.unsqueeze(first_channel_dim)

    def from_canonical(self, canonical: Tensor) -> Tensor:
        """The inverse of `to_canonical`."""
        sizes = [canonical.shape[0], *(self.shape[i - 1] for i in self._order[1:])]
        permuted = canonical.reshape(sizes)
        return permuted.permute([self._order.index(i) for i in range(len(self._order))])


@dataclass(frozen=True)
class ChannelDim:
    """The dimension of the channels of a layer, where the meaning of the other dimensions is unknown."""

    dimension: int


# The layout of an output, None if it is unknown.
OutputLayout = FeatureLayout | ChannelDim | None


def is_spatial(layout: OutputLayout) -> bool:
    """Whether an output is a feature map or a list of tokens with a single dimension of channels."""
    return (
        isinstance(layout, FeatureLayout)
        and bool(layout.spatial_dims)
        and len(layout.shape) - len(layout.spatial_dims) == 1
    )


def flatten_spatial(maps: Tensor) -> Float[Tensor, "b c p"]:
    """A feature map "b c y x" or tokens "b l c" with all positions in the last dimension."""
    return maps.flatten(2) if maps.ndim == 4 else maps.transpose(1, 2)


def half_image_probes(size: int) -> Float[Tensor, "n 3 s s"]:
    """For each pair of noise images five images: the first, and it with the left, right, upper and lower half of the
    second."""
    generator, middle, probes = torch.Generator().manual_seed(0), size // 2, []
    for _ in range(NUM_IMAGE_PAIRS):
        base, other = torch.rand(2, 3, size, size, generator=generator)
        changed = base.expand(5, -1, -1, -1).clone()
        changed[1, :, :, :middle], changed[2, :, :, middle:] = other[:, :, :middle], other[:, :, middle:]
        changed[3, :, :middle], changed[4, :, middle:] = other[:, :middle], other[:, middle:]
        probes.append(changed)
    return torch.cat(probes)


def detect_layout(module: nn.Module, output: Tensor) -> OutputLayout:
    """The layout of a module's output, or input, for `half_image_probes`; None if it is unknown."""
    if output.ndim < 2 or output.ndim > 4 or len(output) != 5 * NUM_IMAGE_PAIRS:
        return None
    shape = tuple(output.shape[1:])
    if sum(side > 1 for side in shape) < 2:
        return FeatureLayout((), shape)
    channel_dim = _channel_dim_by_definition(module, output)
    changes = _squared_changes(output)
    candidates = _spatial_dim_candidates(shape, channel_dim)
    scores = sorted(((_locality(changes, dims), dims) for dims in candidates), reverse=True)
    (best, spatial_dims), (second, _) = [*scores, (0.0, ()), (0.0, ())][:2]
    min_score = MIN_SCORE + CHANCE_MARGIN / sqrt(prod(shape[i - 1] for i in spatial_dims))
    if best >= min_score and (channel_dim is not None or best >= MIN_SCORE_RATIO * second):
        return FeatureLayout(spatial_dims, shape)
    return None if channel_dim is None else ChannelDim(channel_dim)


def _channel_dim_by_definition(module: nn.Module, output: Tensor) -> int | None:
    """The dimension of the channels by the type of the layer, None if the type does not determine it."""
    if isinstance(module, CHANNELS_FIRST):
        return 1
    if isinstance(module, nn.LayerNorm):
        if type(module) is nn.LayerNorm:
            return output.ndim - 1
        # A subclass may normalize the first or the last dimension: the one whose size equals the number of weights.
        matching = [i for i in (1, output.ndim - 1) if tuple(module.normalized_shape) == (output.shape[i],)]
        return matching[0] if len(matching) == 1 else None
    return output.ndim - 1 if type(module) is nn.Linear else None


def _squared_changes(output: Tensor) -> Float[Tensor, "4 ..."]:
    """The squared change of each value when one half of the image changes, summed over the pairs."""
    probes = output.detach().float().unflatten(0, (NUM_IMAGE_PAIRS, 5))
    return (probes[:, 1:] - probes[:, :1]).square().sum(dim=0)


def _spatial_dim_candidates(shape: tuple[int, ...], channel_dim: int | None) -> Iterator[tuple[int, ...]]:
    """Pairs of dimensions that may be rows and columns, and single dimensions that may be tokens."""
    if len(shape) == 3:
        yield from (p for p in ((2, 3), (1, 2)) if shape[p[0] - 1] == shape[p[1] - 1] > 1 and channel_dim not in p)
    min_tokens = 4 if len(shape) == 2 else 9
    for i in range(1, len(shape) + 1):
        if shape[i - 1] >= min_tokens and (channel_dim is None or (len(shape) == 2 and channel_dim != i)):
            yield (i,)


def _locality(changes: Float[Tensor, "4 ..."], spatial_dims: tuple[int, ...]) -> float:
    """How much of the change stays in the half of the map that corresponds to the half of the image, in [-1, 1].

    It is the minimum over rows and columns. Tokens are taken as a square in row-major order; additional tokens, such as
    a class token, precede it.
    """
    channels = [i for i in range(1, changes.ndim) if i not in spatial_dims]
    sums = changes.double().sum(dim=channels) if channels else changes.double()
    if len(spatial_dims) == 1:
        side = isqrt(sums.shape[1])
        sums = sums[:, sums.shape[1] - side * side :].unflatten(1, (side, side))
    left, right, upper, lower = sums
    side = sums.shape[1]
    sign = ((side - 1) / 2 - torch.arange(side, dtype=sums.dtype, device=sums.device)).sign()
    return min(_contrast(left, right, sign[None]), _contrast(upper, lower, sign[:, None]))


def _contrast(first: Tensor, second: Tensor, sign: Tensor) -> float:
    """The mean of (first - second) / (first + second), with `sign` 1 in the first half of the map and -1 in the
    second."""
    difference = (first - second) / (first + second).clamp(min=torch.finfo(first.dtype).tiny)
    count = prod(first.shape) * sign.abs().mean()
    return ((difference * sign).sum() / count).item()
