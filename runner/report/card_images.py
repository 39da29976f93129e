"""Images of a problem as its page shows them: in order, with captions, alternative texts and maps over their images."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError

from classifier_lens.runner.report.labels import IMAGE_LABELS, image_label
from classifier_lens.runner.results.reader import REWRITE_HINT

ORDER = ("original", "start", "best", "difference", "mask")
WIDE = 1.5  # width over height from which an image takes two columns
UNDER_MAPS = {"cam-training": ("training",), "cam-before": ("original", "start"), "cam-after": ("best",)}
WORD_MAPS = ("class", "word-")  # lie over the original


@dataclass(frozen=True)
class CardImage:
    """An existing image of the run folder. href: its address relative to the page; under: that of the image that it
    lies over, if it is a map; note: a second line of its caption."""

    key: str
    label: str
    alt: str
    href: str
    width: int
    height: int
    note: str = ""
    under: str = ""

    @property
    def is_wide(self) -> bool:
        return self.width > WIDE * self.height

    @property
    def is_sample(self) -> bool:
        """Whether it is one of many images of a prompt."""
        return self.key.startswith("sample_")


@dataclass(frozen=True)
class Shown:
    """The images of a problem. unchanged: a line that says so where images that could differ are equal."""

    images: list[CardImage]
    samples: list[CardImage]
    unchanged: str

    @property
    def has_maps(self) -> bool:
        return any(image.under for image in self.images)


def card_images(
    folder: Path, record: Mapping[str, Any], titles: Mapping[str, str], captions: Mapping[str, str]
) -> Shown:
    """A record's images that exist within the folder, without those that show the same again. titles: of the task's
    images; captions: a line under images, by their names."""
    equal, unchanged = _repeated(record)
    paths = {key: str(path) for key, path in (record.get("images") or {}).items()}
    known = [key for key in (*ORDER, *IMAGE_LABELS) if key in paths]
    order = dict.fromkeys([*known, *paths])
    found = {
        key: image for key in order if key not in equal
        if (image := _card_image(folder, record, key, paths, titles, captions)) is not None
    }  # fmt: skip
    images = [image for image in found.values() if not image.is_sample]
    return Shown(images, [image for image in found.values() if image.is_sample], unchanged)


def _repeated(record: Mapping[str, Any]) -> tuple[set[str], str]:
    """Names of images that would show another one again, by their files' digests, and a line that says so."""
    paths, optimized = record.get("images") or {}, bool(record.get("max_steps"))
    if _equal(record, "best", "original"):
        return {"best", "start", "difference"}, "No change: the result equals the original." if optimized else ""
    difference = set() if "original" in paths else {"difference"}
    if not _equal(record, "best", "start"):
        of_prompts = any(key.startswith("sample_") for key in paths)  # each image may show something else
        return ({"start"} if _equal(record, "start", "original") else set()) | (difference if of_prompts else set()), ""
    line = "The result equals the initialization: optimization found nothing better." if optimized else ""
    return {"start"} | difference, line


def _equal(record: Mapping[str, Any], one: str, other: str) -> bool:
    """Whether two images of a record are known to be the same."""
    digests, paths = record.get("file_digests") or {}, record.get("images") or {}
    first, second = (digests.get(paths.get(key)) for key in (one, other))
    return first is not None and first == second


def _card_image(
    folder: Path, record: Mapping[str, Any], key: str, paths: Mapping[str, str], titles: Mapping[str, str],
    captions: Mapping[str, str],
) -> CardImage | None:  # fmt: skip
    size = _size(folder, paths[key])
    if size is None:
        return None
    label, note = image_label(key, titles), captions.get(key, "")
    below = next((k for k in _below(key) if k in paths and _size(folder, paths[k]) is not None), None)
    return CardImage(
        key, label, _alternative(label, note, key, below, record), _address(folder, paths[key]), *size, note,
        "" if below is None else _address(folder, paths[below]),
    )  # fmt: skip


def _below(key: str) -> tuple[str, ...]:
    """Names of the image that a map lies over, the first that there is."""
    return UNDER_MAPS.get(key, ("original",) if key.startswith(WORD_MAPS) else ())


def _alternative(label: str, note: str, key: str, below: str | None, record: Mapping[str, Any]) -> str:
    """What an image shows, for those who do not see it."""
    of = {"original": record.get("source"), "best": record.get("target")}.get(key)
    over = "" if below is None else ", a color map over the image"
    about = f", {'class' if key == 'original' else 'target'} {of}" if of else ""
    return f"{label} of {record.get('name', '')}{about}{over}" + (f": {note}" if note else "")


def _address(folder: Path, path: str) -> str:
    return quote((folder / path).resolve().relative_to(folder).as_posix())


def _size(folder: Path, path: str) -> tuple[int, int] | None:
    """Width and height of an image, None where there is none within the folder; says so where a file is none."""
    file = (folder / path).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        return None
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return image.size
    except UnidentifiedImageError:
        print(f"{file}: is no image; left out, {REWRITE_HINT}", file=sys.stderr)
        return None
