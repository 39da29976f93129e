"""Which dimensions of what a module gives are places and which are channels, found by a law and not by sizes: what
changes in one half of an image changes that half of a map more than the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt, prod, sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

NUM_IMAGE_PAIRS = 2  # of noise images, of which one stands in a half of the other
MIN_SCORE = 0.05  # of 1, where a change stays in its half: below it dimensions do not follow the image's sides
CHANCE_MARGIN = 0.5  # over the root of the number of places: how far few places may seem to follow them by chance
MIN_SCORE_RATIO = 1.5  # times what any other reading of the dimensions gives

# By definition: the dimension of the channels of what these layers give and are given.
CHANNELS_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)


@dataclass(frozen=True)
class FeatureLayout:
    """spatial_dims: the dimensions of rows and columns, of tokens, or none; shape: of one image's output.

    All others are channels, in their order.
    """

    spatial_dims: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def _order(self) -> list[int]:
        """Channels before rows and columns, tokens before channels."""
        others = [i for i in range(1, len(self.shape) + 1) if i not in self.spatial_dims]
        return [0, *others, *self.spatial_dims] if len(self.spatial_dims) == 2 else [0, *self.spatial_dims, *others]

    def to_canonical(self, output: Tensor) -> Tensor:
        """An output as a feature map "b c y x", as tokens "b l c", or where there are no places as values "b c"."""
        first = 1 if len(self.spatial_dims) != 1 else 2
        moved = output.permute(self._order)
        last = moved.ndim - (2 if len(self.spatial_dims) == 2 else 0)
        return moved.flatten(first, last - 1) if last > first else moved.unsqueeze(first)

    def from_canonical(self, shown: Tensor) -> Tensor:
        """The output of which `shown` is made."""
        sizes = [shown.shape[0], *(self.shape[i - 1] for i in self._order[1:])]
        moved = shown.reshape(sizes)
        return moved.permute([self._order.index(i) for i in range(len(self._order))])


@dataclass(frozen=True)
class ChannelDim:
    """What is known only by the layer's definition: the dimension of the channels. Nothing says what the others are."""

    dimension: int


# How an output is read, None where nothing tells.
OutputLayout = FeatureLayout | ChannelDim | None


def half_image_probes(size: int) -> Float[Tensor, "n 3 s s"]:
    """Noise, then the same with other noise in its left half, right half, upper half and lower half; `PAIRS` times."""
    draw, middle, found = torch.Generator().manual_seed(0), size // 2, []
    for _ in range(NUM_IMAGE_PAIRS):
        base, other = torch.rand(2, 3, size, size, generator=draw)
        changed = base.expand(5, -1, -1, -1).clone()
        changed[1, :, :, :middle], changed[2, :, :, middle:] = other[:, :, :middle], other[:, :, middle:]
        changed[3, :, :middle], changed[4, :, middle:] = other[:, :middle], other[:, middle:]
        found.append(changed)
    return torch.cat(found)


def detect_layout(module: nn.Module, output: Tensor) -> OutputLayout:
    """How a module's output for `halves`, or what it is given, is to be read; None where nothing tells."""
    if output.ndim < 2 or output.ndim > 4 or len(output) != 5 * NUM_IMAGE_PAIRS:
        return None
    shape = tuple(output.shape[1:])
    if sum(side > 1 for side in shape) < 2:
        return FeatureLayout((), shape)
    known = _defined(module, output)
    changes = _changes(output)
    scores = sorted(((_score(changes, p), p) for p in _readings(shape, known)), reverse=True)
    (best, places), (second, _) = [*scores, (0.0, ()), (0.0, ())][:2]
    least = MIN_SCORE + CHANCE_MARGIN / sqrt(prod(shape[i - 1] for i in places))
    if best >= least and (known is not None or best >= MIN_SCORE_RATIO * second):
        return FeatureLayout(places, shape)
    return None if known is None else ChannelDim(known)


def _defined(module: nn.Module, output: Tensor) -> int | None:
    """The dimension of the channels by a layer's definition, None where it has none. What is derived of LayerNorm may
    normalise the first dimension or the last: that of as many values as it has weights, where they differ in size."""
    if isinstance(module, CHANNELS_FIRST):
        return 1
    if isinstance(module, nn.LayerNorm):
        ends = [i for i in (1, output.ndim - 1) if tuple(module.normalized_shape) == (output.shape[i],)]
        return output.ndim - 1 if type(module) is nn.LayerNorm else ends[0] if len(ends) == 1 else None
    return output.ndim - 1 if type(module) is nn.Linear else None


def _changes(output: Tensor) -> Tensor:
    """How much each value changes with each half of the image, the halves first."""
    runs = output.detach().float().unflatten(0, (NUM_IMAGE_PAIRS, 5))
    return (runs[:, 1:] - runs[:, :1]).square().sum(dim=0)


def _readings(shape: tuple[int, ...], known: int | None) -> Iterator[tuple[int, ...]]:
    """The dimensions that may be rows and columns, or tokens, if one dimension is known to be that of channels."""
    if len(shape) == 3:
        yield from (p for p in ((2, 3), (1, 2)) if shape[p[0] - 1] == shape[p[1] - 1] > 1 and known not in p)
    for i in range(1, len(shape) + 1):
        if shape[i - 1] >= (4 if len(shape) == 2 else 9) and (known is None or (len(shape) == 2 and known != i)):
            yield (i,)


def _score(changes: Tensor, places: tuple[int, ...]) -> float:
    """From −1 to 1: how far changes of a half of the image stay in that half of the map, in rows and in columns. Tokens
    are rows of a square; those in excess, such as a class token, stand first."""
    others = [i for i in range(1, changes.ndim) if i not in places]
    sums = changes.double().sum(dim=others) if others else changes.double()
    if len(places) == 1:
        side = isqrt(sums.shape[1])
        sums = sums[:, sums.shape[1] - side * side :].unflatten(1, (side, side))
    left, right, upper, lower = sums
    side = sums.shape[1]
    first = ((side - 1) / 2 - torch.arange(side, dtype=sums.dtype, device=sums.device)).sign()
    return min(_staying(left, right, first[None]), _staying(upper, lower, first[:, None]))


def _staying(first: Tensor, second: Tensor, sign: Tensor) -> float:
    """The mean relative difference of changes by two halves, positive in the first half's places."""
    difference = (first - second) / (first + second).clamp(min=torch.finfo(first.dtype).tiny)
    counted = prod(first.shape) * sign.abs().mean()
    return ((difference * sign).sum() / counted).item()
