"""Whether a network can be explained: checks on a few seeded images, each refusal one line."""

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
from classifier_lens.models.classifier.user_code_errors import describe_error
from classifier_lens.runner.types import UserError, printable

# Of the largest logit: by how much answers for the same image may differ, as they do on a GPU and in larger batches.
REPEATABILITY_TOLERANCE = 1e-3

OUT_OF_RANGE_STD = 30.0  # standard deviation of images that no network was made for
MAX_SIZE = 4096  # px, of the square that a network sees

MEMORY_ERRORS = (MemoryError, torch.OutOfMemoryError)  # which is nothing that is wrong of a network


class CheckableClassifier(Protocol):
    """What is checked of a classifier; raw_outputs: the network's outputs as they are, for images in [0, 1]."""

    error_prefix: str
    labels: tuple[str, ...]
    size: int
    output: str | None

    def raw_outputs(self, images: Tensor) -> Tensor: ...


def check_settings(
    name: str, labels: Sequence[str], size: int, mean: Sequence[float], std: Sequence[float], output: str | None
) -> None:
    """Raises UserError for settings that cannot be right, whatever the network is."""
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise UserError(f"{name}: labels must differ, but these stand there twice: {', '.join(repeated)}")
    if odd := [label for label in labels if label != printable(label) or not label.strip()]:
        raise UserError(f"{name}: labels are texts of one line without control characters; one is {odd[0]!r}")
    if len(labels) < 2:
        given = ", ".join(labels) or "none"
        raise UserError(f"{name}: labels are {given}; at least 2 are needed, or every image is predicted as the same")
    check_size(name, size)
    check_output_option(name, output, len(labels))
    _check_normalisation(name, mean, std)


def channel_values(name: str, key: str, values: Any) -> tuple[float, ...]:
    """A list, array or tensor of numbers as floats. Raises UserError for anything else."""
    try:
        return tuple(map(float, values))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {key}={values}; allowed are three numbers, one per RGB channel") from error


def check_size(name: str, size: int) -> None:
    """Raises UserError unless it is a number of pixels that a network may see."""
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_SIZE:
        raise UserError(f"{name}: size={size}; allowed are whole numbers of pixels, 1 to {MAX_SIZE}")


def _check_normalisation(name: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises UserError unless they are of images in [0, 1]."""
    given = f"{name}: mean={list(mean)} std={list(std)}"
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise UserError(f"{given}; allowed are three finite numbers each, those of std above 0")
    if min(mean) < 0 or max(*mean, *std) > 1:
        advice = "of images in 0..255 divide both by 255" if max(*mean, *std) > 2 else "images are in [0, 1]"
        raise UserError(f"{given}; allowed are mean in [0, 1] and std up to 1, per RGB channel: {advice}")


@torch.no_grad()
def check_forward(classifier: CheckableClassifier) -> Tensor:
    """The outputs for a few unlike images. Raises UserError, in one line, if there are none, or not one row per image
    of one value per label, or if the same image has another row in another company."""
    name, images = classifier.error_prefix, probe_images(classifier.size)
    with torch.random.fork_rng(devices=[]):
        asked = [images[:1], images, images[[2, 1]]]
        alone, together, again = (_answers(classifier, part) for part in asked)
    for values, part in zip((alone, together, again), asked, strict=True):
        _check_shape(classifier, values, len(part))
    if not together.isfinite().all():
        raise UserError(f"{name}: logits of a random picture are not finite")
    _check_repeatable(name, together[[0, 2, 1]], torch.cat([alone, again]))
    return together


def check_output_values(classifier: CheckableClassifier, values: Tensor, linear: bool) -> None:
    """Raises UserError if the outputs for unlike images are not what they are declared as, or taken for.

    linear: whether they are known to be those of a linear layer, and so logits.
    """
    flat = values.reshape(len(values), -1).float()
    if (flat - flat[:1]).any() and not (
        linear and classifier.output in (None, "logits", "binary")
    ):  # of what never changes, gradients tell
        check_declared_output(
            classifier.error_prefix,
            classifier.output,
            flat,
            lambda: _far(classifier).reshape(-1, flat.shape[1]).float(),
        )


def _answers(classifier: CheckableClassifier, images: Tensor) -> Tensor:
    """The network's outputs. Raises UserError, with what the network says and where, if it fails."""
    try:
        return classifier.raw_outputs(images)
    except (UserError, *MEMORY_ERRORS):
        raise
    except Exception as error:  # anything may go wrong in code that is not ours
        said = f"the network fails on images of shape {tuple(images.shape)}: {describe_error(error)}"
        raise UserError(f"{classifier.error_prefix}: {said}") from error


def probe_images(size: int) -> Float[Tensor, "n 3 s s"]:
    """Unlike images in [0, 1]: noise, a smooth change of colours, black, white."""
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    colours = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    smooth = F.interpolate(colours, (size, size), mode="bilinear", align_corners=True)
    return torch.cat([noise, smooth, torch.zeros_like(noise), torch.ones_like(noise)])


@torch.no_grad()
def _far(classifier: CheckableClassifier) -> Tensor:
    """The outputs for smooth images far out of [0, 1]; none where the network refuses them."""
    drawn = OUT_OF_RANGE_STD * torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    images = F.interpolate(drawn, (classifier.size, classifier.size), mode="bilinear", align_corners=True)
    try:
        return classifier.raw_outputs(images)
    except MEMORY_ERRORS:
        raise
    except Exception:  # it may check what it is given
        return torch.empty(0)


def _check_shape(classifier: CheckableClassifier, values: Tensor, count: int) -> None:
    """Raises UserError unless there is one row of outputs per image, one per label, all of them real numbers."""
    if not values.is_floating_point():
        kind = str(values.dtype).removeprefix("torch.")
        raise UserError(f"{classifier.error_prefix}: its outputs are of type {kind}; wanted are floating-point numbers")
    wanted = expected_num_outputs(classifier.output, len(classifier.labels))
    if values.shape == (count, wanted) or (classifier.output in BINARY_OUTPUTS and values.shape == (count,)):
        return
    if values.ndim == 2 and len(values) == count:
        said = describe_output_mismatch(classifier.output, values.shape[1], len(classifier.labels))
    else:
        said = f"output size shape {tuple(values.shape)} does not match its {len(classifier.labels)} labels"
        said += f"; wanted is ({count}, {wanted})"
    raise UserError(f"{classifier.error_prefix}: {said}")


def _check_repeatable(name: str, first: Tensor, second: Tensor) -> None:
    """Raises UserError if the same images had other answers in another company."""
    largest, most = (first - second).abs().max().item(), first.abs().max().item()
    if largest > REPEATABILITY_TOLERANCE * max(most, REPEATABILITY_TOLERANCE):
        raise UserError(
            f"{name}: answers for the same image differ, by {largest:.2g} of {most:.2g}: is dropout on, or is a "
            "network in training mode? Call its eval() first; nothing may be random, or depend on an image's company"
        )


def check_gradient(classifier: CheckableClassifier) -> None:
    """Raises UserError unless the gradient of the logits reaches an image, is finite and not zero everywhere."""
    name, image = classifier.error_prefix, probe_images(classifier.size)[:1].requires_grad_(True)
    with torch.enable_grad():
        logits = to_logits(classifier.output, _answers(classifier, image))
        # Their plain sum does not depend on the image behind a softmax, nor does the sum of their exponentials.
        drawn = torch.randn(logits.shape[1], generator=torch.Generator().manual_seed(0)).to(logits)
        value = (logits * drawn).sum()
        gradient = torch.autograd.grad(value, image, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise UserError(
            f"{name}: the gradient of the logits does not reach the image; something detaches it on its way"
        )
    if not gradient.isfinite().all():
        raise UserError(f"{name}: the gradient of the logits with respect to a random picture is not finite")
    if not gradient.any():
        raise UserError(f"{name}: the gradient of the logits with respect to a random picture is zero everywhere")
