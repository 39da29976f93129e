"""Captions of images from a template or a file, and checks that all captioners share.

The inversion uses the caption, the edits of captions the list of objects. A captioner's `notes` map the names of images
to remarks for the reader; most captioners have none.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from classifier_lens.models.generator.prompt_to_prompt import find_words
from classifier_lens.runner.files.text import read_text
from classifier_lens.runner.types import Example, UserError, indefinite_article


class TemplateCaptioner:
    """The caption of the data set if there is one, otherwise `template` with `{article}` and `{label}`."""

    def __init__(self, template: str) -> None:
        self.template = template
        self.notes: Mapping[str, str] = {}

    def caption(self, example: Example) -> str:
        """The caption of an image. Raises UserError if it does not contain the class name."""
        if example.caption is not None:
            return check_caption(example.caption, example.label, f"the caption of image '{example.name}'")
        key, label = "captioner.template", example.label
        return check_caption(
            fill_template(key, self.template, article=indefinite_article(label), label=label), label, key
        )

    def objects(self, example: Example) -> list[str]:
        """The class name alone."""
        return [with_article(example.label)]


@dataclass(frozen=True)
class ImageDescription:
    """Caption and objects of an image, as read from a file; without objects the list is empty."""

    caption: str
    objects: Sequence[str]


class FileCaptioner:
    """Captions from a file, by image name.

    Args:
        path: a CSV file with the columns `name`, `caption` and optionally `objects` (separated by `;`), or a JSON
            object of `name: caption` or `name: {caption: ..., objects: [...]}`.

    Raises:
        UserError: the file is missing or has another layout.
    """

    def __init__(self, path: str | None) -> None:
        if not path:
            raise UserError("captioner.path is missing: give a .csv or .json file of captions by image name")
        self.key = f"captioner.path={path}"
        self.notes: Mapping[str, str] = {}
        self._descriptions = _read(self.key, Path(path).expanduser())

    def caption(self, example: Example) -> str:
        """The caption of an image. Raises UserError if the file has none or it does not contain the class name."""
        caption = self._description(example).caption
        return check_caption(caption, example.label, f"{self.key}: the caption of image '{example.name}'")

    def objects(self, example: Example) -> list[str]:
        """The objects that the file lists, otherwise the class name. Raises UserError if the file lacks the image."""
        return list(self._description(example).objects) or [with_article(example.label)]

    def _description(self, example: Example) -> ImageDescription:
        if example.name not in self._descriptions:
            count, some_names = len(self._descriptions), ", ".join(list(self._descriptions)[:5])
            raise UserError(
                f"{self.key}: has no caption of image '{example.name}'; it has {count}, such as {some_names}"
            )
        return self._descriptions[example.name]


def _read(key: str, path: Path) -> dict[str, ImageDescription]:
    """The captions of a file by image name. Raises UserError if it is missing, empty or has another layout."""
    readers = {".csv": _read_csv, ".json": _read_json}
    if path.suffix not in readers:
        raise UserError(f"{key}: allowed are {' and '.join(readers)} files")
    text = read_text(key, path, "a .csv or .json file of captions by image name")
    try:
        descriptions = readers[path.suffix](text)
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        wanted = "name,caption[,objects]" if path.suffix == ".csv" else "{name: caption} or {name: {caption, objects}}"
        raise UserError(f"{key}: cannot be read as {wanted} ({error})") from error
    if not descriptions:
        raise UserError(f"{key}: contains no caption")
    return descriptions


def _read_csv(text: str) -> dict[str, ImageDescription]:
    descriptions: dict[str, ImageDescription] = {}
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if missing := {"name", "caption"} - set(rows.fieldnames or ()):
        raise ValueError(f"column {', '.join(sorted(missing))} is missing")
    for row in rows:
        if row["name"] in descriptions:
            raise ValueError(f"'{row['name']}' occurs twice")
        objects = [o.strip() for o in (row.get("objects") or "").split(";")]
        descriptions[row["name"]] = ImageDescription(normalize_whitespace(row["caption"]), [o for o in objects if o])
    return descriptions


def _read_json(text: str) -> dict[str, ImageDescription]:
    descriptions: dict[str, ImageDescription] = {}
    for name, value in json.loads(text).items():
        entry = {"caption": value} if isinstance(value, str) else value
        descriptions[name] = ImageDescription(
            normalize_whitespace(entry["caption"]), [normalize_whitespace(o) for o in entry.get("objects", [])]
        )
    return descriptions


def with_article(label: str) -> str:
    """A class name with its indefinite article."""
    return f"{indefinite_article(label)} {label}"


def normalize_whitespace(text: str) -> str:
    """The text in one line, with single spaces."""
    return " ".join(text.split())


def mentions(caption: str, label: str) -> bool:
    """Whether the caption contains the words of the class name one after another, so that they can be replaced."""
    try:
        find_words(caption, label)
    except UserError:
        return False
    return True


def check_caption(caption: str, label: str, key: str) -> str:
    """The caption itself. Raises UserError, which begins with `key`, if it does not contain the class name."""
    if not mentions(caption, label):
        raise UserError(f"{key}: '{caption}' does not contain '{label}', its class name")
    return caption


def fill_template(key: str, template: str, **words: str) -> str:
    """The template with `words` in place of its placeholders. Raises UserError for other placeholders."""
    try:
        return normalize_whitespace(template.format(**words))
    except (KeyError, IndexError, ValueError) as error:
        allowed = ", ".join(f"{{{word}}}" for word in words)
        raise UserError(f"{key}={template}: has other placeholders than the allowed {allowed}") from error
