"""Checks that a network can be explained: its settings, its outputs for a few seeded images, and its gradients."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from classifier_lens.models.classifier.logits import (
    BINARY_OUTPUTS,
    check_declared_output,
    check_output_option,
    describe_output_mismatch,
    expected_num_outputs,
    to_logits,
)
from classifier_lens.runner.types import UserError, printable
from classifier_lens.runner.user_code import describe_error

# Allowed difference between outputs for the same image, relative to the largest output: kernels on a GPU and for other
# batch sizes round differently.
REPEATABILITY_TOLERANCE = 1e-3

OUT_OF_RANGE_STD = 30.0  # standard deviation of images far out of [0, 1]
MAX_SIZE = 4096  # pixels, side of the network's input

MEMORY_ERRORS = (MemoryError, torch.OutOfMemoryError)  # do not mean that the network is incompatible


class CheckableClassifier(Protocol):
    """The part of a classifier that is checked; raw_outputs: outputs for images in [0, 1], not converted to logits."""

    error_prefix: str
    labels: tuple[str, ...]
    size: int
    output: str | None

    def raw_outputs(self, images: Tensor) -> Tensor: ...


def check_settings(
    name: str, labels: Sequence[str], size: int, mean: Sequence[float], std: Sequence[float], output: str | None
) -> None:
    """Raises UserError for settings that are wrong for every network."""
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise UserError(f"{name}: labels must differ, but these occur more than once: {', '.join(repeated)}")
    if unprintable := [label for label in labels if label != printable(label) or not label.strip()]:
        raise UserError(f"{name}: labels are texts of one line without control characters; one is {unprintable[0]!r}")
    if len(labels) < 2:
        raise UserError(
            f"{name}: labels are {', '.join(labels) or 'none'}; at least 2 are needed, otherwise all predictions agree"
        )
    check_size(name, size)
    check_output_option(name, output, len(labels))
    _check_normalization(name, mean, std)


def channel_values(name: str, key: str, values: Any) -> tuple[float, ...]:
    """The numbers of a list, array or tensor as floats. Raises UserError for other values."""
    try:
        return tuple(map(float, values))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {key}={values}; allowed are three numbers, one per RGB channel") from error


def check_size(name: str, size: int) -> None:
    """Raises UserError unless the size is a number of pixels from 1 to `MAX_SIZE`."""
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_SIZE:
        raise UserError(f"{name}: size={size}; allowed are whole numbers of pixels, 1 to {MAX_SIZE}")


def _check_normalization(name: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises UserError unless mean and std are those of RGB images in [0, 1]."""
    prefix = f"{name}: mean={list(mean)} std={list(std)}"
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise UserError(f"{prefix}; allowed are three finite numbers each, those of std above 0")
    if min(mean) < 0 or max(*mean, *std) > 1:
        is_8bit = max(*mean, *std) > 2
        advice = "for images in 0..255 divide both by 255" if is_8bit else "images are in [0, 1]"
        raise UserError(f"{prefix}; allowed are mean in [0, 1] and std up to 1, per RGB channel: {advice}")


@torch.no_grad()
def check_forward(classifier: CheckableClassifier) -> Tensor:
    """The outputs for `probe_images`.

    Raises UserError if the network fails, if its outputs have another shape than (images, labels) or are not finite,
    and if the outputs for an image depend on the other images of the batch.
    """
    name, images = classifier.error_prefix, probe_images(classifier.size)
    batches = [images[:1], images, images[[2, 1]]]
    with torch.random.fork_rng(devices=[]):
        single, outputs, pair = (_raw_outputs(classifier, batch) for batch in batches)
    for values, batch in zip((single, outputs, pair), batches, strict=True):
        _check_shape(classifier, values, len(batch))
    if not outputs.isfinite().all():
        raise UserError(f"{name}: logits of a random image are not finite")
    _check_repeatable(name, outputs[[0, 2, 1]], torch.cat([single, pair]))
    return outputs


def check_output_values(classifier: CheckableClassifier, values: Tensor, linear: bool) -> None:
    """Raises UserError if the outputs for `probe_images` contradict their declared type.

    linear: whether they are the outputs of a linear layer and therefore logits.
    """
    flat = values.reshape(len(values), -1).float()
    is_constant = not (flat - flat[:1]).any()  # reported by `check_gradient`
    if not is_constant and not (linear and classifier.output in (None, "logits", "binary")):
        check_declared_output(
            classifier.error_prefix,
            classifier.output,
            flat,
            lambda: _out_of_range_outputs(classifier).reshape(-1, flat.shape[1]).float(),
        )


def _raw_outputs(classifier: CheckableClassifier, images: Tensor) -> Tensor:
    """The outputs of the network. Raises UserError, with the network's message and its location, if it fails."""
    try:
        return classifier.raw_outputs(images)
    except (UserError, *MEMORY_ERRORS):
        raise
    except Exception as error:  # the user's code may raise any exception
        raise UserError(
            f"{classifier.error_prefix}: the network fails on images of shape {tuple(images.shape)}: "
            f"{describe_error(error)}"
        ) from error


def probe_images(size: int) -> Float[Tensor, "n 3 s s"]:
    """Four different images in [0, 1]: noise, a smooth color gradient, black, white."""
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    colors = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    gradient = F.interpolate(colors, (size, size), mode="bilinear", align_corners=True)
    return torch.cat([noise, gradient, torch.zeros_like(noise), torch.ones_like(noise)])


@torch.no_grad()
def _out_of_range_outputs(classifier: CheckableClassifier) -> Tensor:
    """The outputs for smooth images far out of [0, 1]; empty if the network raises an error for them."""
    colors = OUT_OF_RANGE_STD * torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    images = F.interpolate(colors, (classifier.size, classifier.size), mode="bilinear", align_corners=True)
    try:
        return classifier.raw_outputs(images)
    except MEMORY_ERRORS:
        raise
    except Exception:  # the network may check the range of its input
        return torch.empty(0)


def _check_shape(classifier: CheckableClassifier, values: Tensor, count: int) -> None:
    """Raises UserError unless the outputs are floating-point numbers of shape (images, labels)."""
    if not values.is_floating_point():
        dtype = str(values.dtype).removeprefix("torch.")
        raise UserError(f"{classifier.error_prefix}: its outputs are of type {dtype}; expected floating-point numbers")
    num_outputs = expected_num_outputs(classifier.output, len(classifier.labels))
    if values.shape == (count, num_outputs) or (classifier.output in BINARY_OUTPUTS and values.shape == (count,)):
        return
    if values.ndim == 2 and len(values) == count:
        mismatch = describe_output_mismatch(classifier.output, values.shape[1], len(classifier.labels))
    else:
        mismatch = (
            f"output shape {tuple(values.shape)} does not match its {len(classifier.labels)} labels; "
            f"expected ({count}, {num_outputs})"
        )
    raise UserError(f"{classifier.error_prefix}: {mismatch}")


def _check_repeatable(name: str, first: Tensor, second: Tensor) -> None:
    """Raises UserError if the outputs for the same images differ between batches."""
    difference, largest = (first - second).abs().max().item(), first.abs().max().item()
    if difference > REPEATABILITY_TOLERANCE * max(largest, REPEATABILITY_TOLERANCE):
        raise UserError(
            f"{name}: outputs for the same image differ, by {difference:.2g} of {largest:.2g}, so they are random or "
            "depend on the other images of the batch; call eval() of the network first, which disables dropout"
        )


def check_gradient(classifier: CheckableClassifier) -> None:
    """Raises UserError unless the gradient of the logits with respect to an image exists, is finite and not zero."""
    name, image = classifier.error_prefix, probe_images(classifier.size)[:1].requires_grad_(True)
    with torch.enable_grad():
        logits = to_logits(classifier.output, _raw_outputs(classifier, image))
        # After a softmax, neither the sum of the logits nor that of their exponentials depends on the image.
        weights = torch.randn(logits.shape[1], generator=torch.Generator().manual_seed(0)).to(logits)
        value = (logits * weights).sum()
        gradient = torch.autograd.grad(value, image, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise UserError(f"{name}: the gradient of the logits does not reach the image; an operation detaches it")
    if not gradient.isfinite().all():
        raise UserError(f"{name}: the gradient of the logits with respect to a random image is not finite")
    if not gradient.any():
        raise UserError(f"{name}: the gradient of the logits with respect to a random image is zero everywhere")
