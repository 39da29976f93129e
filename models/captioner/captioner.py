"""Captions for pictures: what the inversion is told the picture shows, and what is seen in it.

A captioner's `notes` say, by picture name, what the reader has to know of a caption; most have nothing to say.
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
    """The picture's own caption where it has one, else `template` with `{article}` and `{label}` filled in."""

    def __init__(self, template: str) -> None:
        self.template = template
        self.notes: Mapping[str, str] = {}

    def caption(self, example: Example) -> str:
        """Raises UserError if the class name does not stand in it."""
        if example.caption is not None:
            return check_caption(example.caption, example.label, f"the caption of picture '{example.name}'")
        key, label = "captioner.template", example.label
        return check_caption(
            fill_template(key, self.template, article=indefinite_article(label), label=label), label, key
        )

    def objects(self, example: Example) -> list[str]:
        """The class: nothing else is known."""
        return [with_article(example.label)]


@dataclass(frozen=True)
class ImageDescription:
    """What a file says of a picture. objects: none where it names none."""

    caption: str
    objects: Sequence[str]


class FileCaptioner:
    """Captions that somebody wrote, by the pictures' names.

    path: a CSV with the columns `name`, `caption` and, optional, `objects` (separated by `;`), or a JSON object of
    `name: caption` or `name: {caption: ..., objects: [...]}`. Raises UserError if it is missing or cannot be read so.
    """

    def __init__(self, path: str | None) -> None:
        if not path:
            raise UserError("captioner.path is missing: give a .csv or .json file of captions by picture name")
        self.key = f"captioner.path={path}"
        self.notes: Mapping[str, str] = {}
        self._described = _read(self.key, Path(path).expanduser())

    def caption(self, example: Example) -> str:
        """Raises UserError if the file does not name the picture, or the caption not the class."""
        caption = self._of(example).caption
        return check_caption(caption, example.label, f"{self.key}: the caption of picture '{example.name}'")

    def objects(self, example: Example) -> list[str]:
        """What the file lists; the class where it lists nothing. Raises UserError as `caption` does."""
        return list(self._of(example).objects) or [with_article(example.label)]

    def _of(self, example: Example) -> ImageDescription:
        if example.name not in self._described:
            some = ", ".join(list(self._described)[:5])
            raise UserError(
                f"{self.key}: has no caption of picture '{example.name}'; it has {len(self._described)}, such as {some}"
            )
        return self._described[example.name]


def _read(key: str, path: Path) -> dict[str, ImageDescription]:
    """A file of captions. Raises UserError in one line if there is none, or if it is written otherwise."""
    readers = {".csv": _read_csv, ".json": _read_json}
    if path.suffix not in readers:
        raise UserError(f"{key}: allowed are files of kind {', '.join(readers)}")
    text = read_text(key, path, "a .csv or .json file of captions by picture name")
    try:
        described = readers[path.suffix](text)
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        wanted = "name,caption[,objects]" if path.suffix == ".csv" else "{name: caption} or {name: {caption, objects}}"
        raise UserError(f"{key}: cannot be read as {wanted} ({error})") from error
    if not described:
        raise UserError(f"{key}: holds no caption")
    return described


def _read_csv(text: str) -> dict[str, ImageDescription]:
    described: dict[str, ImageDescription] = {}
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if missing := {"name", "caption"} - set(rows.fieldnames or ()):
        raise ValueError(f"column {', '.join(sorted(missing))} is missing")
    for row in rows:
        if row["name"] in described:
            raise ValueError(f"'{row['name']}' stands there twice")
        objects = [o.strip() for o in (row.get("objects") or "").split(";")]
        described[row["name"]] = ImageDescription(normalize_whitespace(row["caption"]), [o for o in objects if o])
    return described


def _read_json(text: str) -> dict[str, ImageDescription]:
    described: dict[str, ImageDescription] = {}
    for name, value in json.loads(text).items():
        entry = {"caption": value} if isinstance(value, str) else value
        described[name] = ImageDescription(
            normalize_whitespace(entry["caption"]), [normalize_whitespace(o) for o in entry.get("objects", [])]
        )
    return described


# --- what captioners share -----------------------------------------------------------------------------------


def with_article(label: str) -> str:
    """A class name as it stands in a sentence."""
    return f"{indefinite_article(label)} {label}"


def normalize_whitespace(text: str) -> str:
    """Text in one line, with single blanks."""
    return " ".join(text.split())


def mentions(caption: str, label: str) -> bool:
    """Whether the words of the class name stand in the caption, side by side, where an edit can find them."""
    try:
        find_words(caption, label)
    except UserError:
        return False
    return True


def check_caption(caption: str, label: str, key: str) -> str:
    """The caption, if it names the class. Raises UserError, which begins with `key`, otherwise."""
    if not mentions(caption, label):
        raise UserError(f"{key}: '{caption}' does not contain '{label}', the name of its class")
    return caption


def fill_template(key: str, template: str, **words: str) -> str:
    """A template with `words` in their placeholders. Raises UserError if it has others."""
    try:
        return normalize_whitespace(template.format(**words))
    except (KeyError, IndexError, ValueError) as error:
        allowed = ", ".join(f"{{{word}}}" for word in words)
        raise UserError(f"{key}={template}: cannot be filled in; allowed placeholders are {allowed}") from error
