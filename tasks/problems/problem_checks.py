"""Problems that cannot be made: a network raises an error before the first step, or returns a value that is not
finite."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar, cast

from torch import Tensor

from classifier_lens.runner.errors import is_out_of_memory, is_problem_error
from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.types import (
    CaptionEdit,
    NonFiniteError,
    Problem,
    UnreadableImageError,
    UserError,
    first_line,
)

T = TypeVar("T")


def problems_or_failure(name: str, make_problems: Callable[[], Iterable[T]]) -> Iterator[T]:
    """Problems; if making them raises an error, one failed problem of this name that holds the error. Errors that do
    not belong to one problem are raised: out of memory, user errors and images that cannot be read."""
    try:
        yield from make_problems()
    except Exception as error:
        if isinstance(error, UnreadableImageError) or not is_problem_error(error) or is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they would hold tensors until the problem's turn
        edit = CaptionEdit.unchanged("", "")
        failed = Problem(name=name, seed=0, edit=edit, load=None, image_name=name, preserve="none", error=error)
        yield cast(T, failed)  # a failed problem is never given to its task


def apply_to_training_images(
    classifier: Classifier, names: Sequence[str], images: Tensor, compute: Callable[[Tensor], T]
) -> T:
    """`compute(images)` of training images, on which all problems depend. Raises UserError that names the network and
    the image if the network raises an error or a value is not finite."""
    try:
        return compute(images)
    except Exception as error:
        if not is_problem_error(error) or is_out_of_memory(error):
            raise
        name, cause = _failing_image(names, images, compute, error)
    reason = f"{cause}" if isinstance(cause, NonFiniteError) else f"{type(cause).__name__}: {first_line(cause)}"
    network = getattr(classifier, "error_prefix", "classifier")
    raise UserError(
        f"{network}: fails on the training image {name} ({reason}); remove the image from training.path, or use "
        "another network"
    ) from cause


def _failing_image(
    names: Sequence[str], images: Tensor, compute: Callable[[Tensor], object], error: Exception
) -> tuple[str, Exception]:
    """The first image that raises an error alone, and its error; all images if they only fail together."""
    for name, image in zip(names, images, strict=True):
        try:
            compute(image[None])
        except Exception as image_error:
            return name, image_error
    return f"{names[0]} or one of the {len(names) - 1} after it", error
