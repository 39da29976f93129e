"""What tasks that start from an image have in common: which images, their captions, masks and preserved regions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.digests import hash_example
from classifier_lens.data.images import center_crop_resize
from classifier_lens.data.mask_files import read_mask
from classifier_lens.runner.protocols import Captioner, Dataset
from classifier_lens.runner.types import CaptionEdit, Example, UnreadableImageError, UserError
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
from classifier_lens.tasks.prompts.target_rules import class_indices

T = TypeVar("T")

# Images of a class, of other classes, and generated ones of the class.
START_IMAGES = ("own", "other", "generated")


def image_fields(
    dataset: Dataset, i: int, example: Example, side: int, preserve: str, mask: str | None
) -> dict[str, Any]:
    """The fields of a problem that starts from an image, the data set's example at position i: the image at the
    generator's size, read when its batch begins; its name and content digest, the preserved region and the mask of a
    file, if one is given."""
    digest = hash_example(example)
    load = image_loader(dataset, i, digest, side)
    return {**generated_image_fields(example.name, side, preserve, mask), "load": load, "content_digest": digest}


def image_loader(dataset: Dataset, i: int, digest: str, side: int) -> Callable[[], Float[Tensor, "3 s s"]]:
    """A function that reads a data set's image at position i, of `side` pixels, at every call: a run holds only the
    images of its batch. The call raises UnreadableImageError if the image's content digest has changed."""
    return partial(_load_unchanged_image, dataset, i, side, digest)


def _load_unchanged_image(dataset: Dataset, i: int, side: int, digest: str) -> Float[Tensor, "3 s s"]:
    example = dataset[i]
    if hash_example(example) != digest:
        raise UnreadableImageError(
            f"{example.name}: the image was changed during the run; start the same command again"
        )
    return center_crop_resize(example.image, side)


def generated_image_fields(name: str, side: int, preserve: str, mask: str | None) -> dict[str, Any]:
    """The same fields of a problem whose image is generated."""
    mask_image = None if mask is None else _read_mask(mask, side, _modification_time(mask))
    return {"load": None, "image_name": name, "preserve": preserve, "mask": mask_image}


@lru_cache(maxsize=1)
def _read_mask(path: str, side: int, modification_time: int) -> Float[Tensor, "1 s s"]:
    """The mask of a file, one tensor for all problems that share it."""
    return read_mask("task.mask", path, (side, side))


def _modification_time(path: str) -> int:
    """When a file was changed, in ns; 0 if it does not exist."""
    file = Path(path).expanduser()
    return file.stat().st_mtime_ns if file.exists() else 0


def unedited_image_fields(
    dataset: Dataset, i: int, example: Example, captioner: Captioner, side: int, preserve: str, mask: str | None
) -> dict[str, Any]:  # fmt: skip
    """The fields of `image_fields` and a caption that is not edited."""
    edit = CaptionEdit.unchanged(captioner.caption(example), example.label)
    return {"edit": edit, **image_fields(dataset, i, example, side, preserve, mask)}


def problems_of_images(
    dataset: Dataset, rows: Iterable[int], make_problems: Callable[[int, Example], Iterable[T]]
) -> Iterator[T]:  # fmt: skip
    """The problems of each of a data set's images. make_problems: those of one image, from its position and example.
    An image that cannot be read is skipped with a printed line: its header is read here, its pixels only if problems
    depend on them. If a network fails on an image, one problem under the image's name holds the error."""
    for i in rows:
        try:
            example = dataset[i]
            yield from problems_or_failure(example.name, partial(make_problems, i, example))
        except UnreadableImageError as error:
            print(f"image skipped: {error}", flush=True)


def image_indices(dataset: Dataset, label: str | None) -> list[int]:
    """Positions of the images of a class, of all images for None. Raises UserError if there are none."""
    rows = list(range(len(dataset))) if label is None else dataset.indices(label)
    if not rows:
        raise UserError(f"task.label={label}: the data set has no such image; it has {', '.join(dataset.labels[:10])}")
    return rows


def start_indices(dataset: Dataset, label: str, start_images: str, count: int, labels: Sequence[str]) -> list[int]:
    """The first `count` positions of the images that the problems of a class start from, as one of `START_IMAGES`
    says; 0 … count - 1 for generated images. labels: the classifier's. Raises UserError if the data set has none."""
    if start_images == "generated":
        return list(range(count))
    class_rows = set(class_indices(dataset, label, labels))
    rows = [i for i in range(len(dataset)) if (i in class_rows) == (start_images == "own")]
    if not rows:
        raise UserError(f"task.start_images={start_images}: the data set has no such image for '{label}'")
    return rows[:count]
