"""Questions that cannot be asked: a network raises an error before the first step, or its answer is not finite."""

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


def problems_or_failure(name: str, ask: Callable[[], Iterable[T]]) -> Iterator[T]:
    """The problems that are asked; where asking fails, one that fails by this name with what was raised. Too little
    memory is nobody's problem and raised, and so are the user's mistakes and an image that cannot be read."""
    try:
        yield from ask()
    except Exception as error:
        if isinstance(error, UnreadableImageError) or not is_problem_error(error) or is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they would hold what was computed until the problem's turn
        edit = CaptionEdit.unchanged("", "")
        refused = Problem(name=name, seed=0, edit=edit, load=None, image_name=name, preserve="none", error=error)
        yield cast(T, refused)  # nothing is asked of it


def apply_to_training_images(
    classifier: Classifier, names: Sequence[str], images: Tensor, look: Callable[[Tensor], T]
) -> T:
    """What is found in some of the training images, which everything that is asked follows from. Raises UserError that
    names the network and the image where its code raises an error, or where a value is not finite."""
    try:
        return look(images)
    except Exception as error:
        if not is_problem_error(error) or is_out_of_memory(error):
            raise
        name, own = _failing_image(names, images, look, error)
    told = f"{own}" if isinstance(own, NonFiniteError) else f"{type(own).__name__}: {first_line(own)}"
    network = getattr(classifier, "error_prefix", "classifier")
    raise UserError(
        f"{network}: fails on the training image {name} ({told}); leave it out of the images of training.path, or "
        "use a network that answers to it"
    ) from own


def _failing_image(
    names: Sequence[str], images: Tensor, look: Callable[[Tensor], object], error: Exception
) -> tuple[str, Exception]:
    """The first image that raises an error alone, and its error; all of them where they only fail together."""
    for name, image in zip(names, images, strict=True):
        try:
            look(image[None])
        except Exception as own:
            return name, own
    return f"{names[0]} or one of the {len(names) - 1} after it", error
