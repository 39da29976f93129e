"""Images of a problem as its page shows them: in order, with captions, alternative texts and maps over their images."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError

from classifier_lens.runner.result_schema import (
    DIFFERENCE,
    ORIGINAL,
    RESULT,
    SAMPLES,
    START,
    ImageField,
    Record,
    ResultSchema,
)
from classifier_lens.runner.results.reader import REWRITE_HINT

MIN_WIDE_RATIO = 1.5  # width over height from which an image takes two columns


@dataclass(frozen=True)
class CardImage:
    """An existing image of the run folder. href: its address relative to the page; note: a second line of its caption;
    under: address of the image that a map is laid over, empty for other images."""

    field: ImageField
    alt: str
    href: str
    width: int
    height: int
    note: str = ""
    under: str = ""

    @property
    def key(self) -> str:
        return self.field.key

    @property
    def label(self) -> str:
        return self.field.caption

    @property
    def is_wide(self) -> bool:
        return self.width > MIN_WIDE_RATIO * self.height


@dataclass(frozen=True)
class CardImages:
    """The images of a problem. unchanged: a sentence if images that could differ are equal, else empty."""

    images: list[CardImage]
    samples: list[CardImage]
    unchanged: str

    @property
    def has_maps(self) -> bool:
        return any(image.under for image in self.images)


def card_images(folder: Path, record: Record, schema: ResultSchema, notes: Mapping[str, str]) -> CardImages:
    """A record's images that exist within the folder, without repeated ones. notes: second lines of captions, by the
    images' keys."""
    repeated, unchanged = _repeated_images(record)
    existing = {
        field.key: size for field in schema.images_of(record)
        if (size := _image_size(folder, record["images"][field.key])) is not None
    }  # fmt: skip
    images = [
        _card_image(folder, record, field, existing, notes.get(field.key, ""))
        for field in schema.images_of(record)
        if field.key in existing and field.key not in repeated
    ]
    return CardImages(
        [image for image in images if not image.field.is_sample],
        [image for image in images if image.field.is_sample],
        unchanged,
    )


def _repeated_images(record: Record) -> tuple[set[str], str]:
    """Keys of images that equal another one by their files' digests, and a sentence about it."""
    images, was_optimized = record.get("images") or {}, bool(record.get("max_steps"))
    if _are_equal(record, RESULT, ORIGINAL):
        sentence = "No change: the result equals the original." if was_optimized else ""
        return {RESULT.key, START.key, DIFFERENCE.key}, sentence
    difference = set() if ORIGINAL.key in images else {DIFFERENCE.key}
    if _are_equal(record, RESULT, START):
        line = "The result equals the initialization: optimization found nothing better." if was_optimized else ""
        return {START.key} | difference, line
    if SAMPLES.images(images):  # each image of a prompt may show something else
        repeated = difference
    else:
        repeated = set()
    return repeated | ({START.key} if _are_equal(record, START, ORIGINAL) else set()), ""


def _are_equal(record: Record, first: ImageField, second: ImageField) -> bool:
    """Whether two images of a record are known to be equal."""
    digests, paths = record.get("file_digests") or {}, record.get("images") or {}
    first_digest, second_digest = (digests.get(paths.get(field.key)) for field in (first, second))
    return first_digest is not None and first_digest == second_digest


def _card_image(
    folder: Path, record: Record, field: ImageField, sizes: Mapping[str, tuple[int, int]], note: str
) -> CardImage:
    paths = record["images"]
    under = next((key for key in field.overlaid_on if key in sizes), None)
    return CardImage(
        field, _alternative_text(record, field, note, under is not None), _address(folder, paths[field.key]),
        *sizes[field.key], note, "" if under is None else _address(folder, paths[under]),
    )  # fmt: skip


def _alternative_text(record: Record, field: ImageField, note: str, is_overlay: bool) -> str:
    """A description of an image for readers who do not see it."""
    label = {ORIGINAL.key: ("class", record.get("source")), RESULT.key: ("target", record.get("target"))}.get(field.key)
    about = f", {label[0]} {label[1]}" if label is not None and label[1] else ""
    overlay = ", a color map over the image" if is_overlay else ""
    return f"{field.caption} of {record.get('name', '')}{about}{overlay}" + (f": {note}" if note else "")


def _address(folder: Path, path: str) -> str:
    return quote((folder / path).resolve().relative_to(folder).as_posix())


def _image_size(folder: Path, path: str) -> tuple[int, int] | None:
    """Width and height of an image, None if the folder has no such image; prints a line for a file that is no image."""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        return None
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return image.size
    except UnidentifiedImageError:
        print(f"{file}: is no PNG image and is left out of the page; {REWRITE_HINT}", file=sys.stderr)
        return None
