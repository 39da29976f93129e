"""The responses of participants: files that pages save, read with the key of the study, and counts of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier_lens.runner.files.atomic import DamagedFileError
from classifier_lens.runner.report.totals import SuccessRate
from classifier_lens.runner.results.integrity import parse_object
from classifier_lens.runner.types import UserError


@dataclass(frozen=True)
class Response:
    """A participant's response to one question. image: the image of the question, None if it is about a box."""

    question: str
    image: str | None
    value: Any


@dataclass(frozen=True)
class AllowedResponses:
    """The allowed responses to a question. description: as text; per_image: whether the question is about an image of
    the key."""

    description: str
    is_allowed: Callable[[Any], bool]
    per_image: bool = True


TRUE_OR_FALSE = AllowedResponses("true or false", lambda value: isinstance(value, bool))


@dataclass(frozen=True)
class Scores:
    """The scores of a study, as rows of a table and as lines for the console."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    lines: Sequence[str]

    def table(self) -> str:
        """The rows as CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()


@dataclass(frozen=True)
class ResponseCount:
    """How often the response to a question was yes. group: a method, or a group of classes."""

    question: str
    group: str
    rate: SuccessRate


def summarize_counts(counts: Sequence[ResponseCount], group_name: str) -> Scores:
    """Shares with their 95 % Wilson intervals. group_name: of the column with the groups."""
    rows, lines = [], []
    for c in counts:
        (low, high), has_responses = c.rate.interval, c.rate.total > 0
        share = f"{c.rate.value:.4f}" if has_responses else ""
        rows.append([c.question, c.group, c.rate.successes, c.rate.total, share, f"{low:.4f}", f"{high:.4f}"])
        share = f"{100 * c.rate.value:5.1f} %" if has_responses else "      –"
        ends = f"[{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(f"{c.question:<10} {c.group:<9} {share}  {ends}  {c.rate.successes} of {c.rate.total}")
    return Scores(["question", group_name, "yes", "responses", "share", "low", "high"], rows, lines)


def read_responses(
    files: Sequence[Path], key: Mapping[str, Any], allowed_by_question: Mapping[str, AllowedResponses]
) -> list[list[Response]]:
    """The responses in every file, one file per participant, without questions that were skipped.

    Raises UserError for a file that is given twice or belongs to another study, an unknown question, an image that is
    not in the key or has two responses, and a value that is not allowed."""
    if len({file.resolve() for file in files}) < len(files):
        raise UserError("a file of responses is given twice; name each file once")
    return [list(_responses(file, key, allowed_by_question)) for file in files]


def _responses(
    file: Path, key: Mapping[str, Any], allowed_by_question: Mapping[str, AllowedResponses]
) -> Iterator[Response]:
    content = read_object(file)
    if content.get("study") != key["study"]:
        raise UserError(
            f"{file}: belongs to study {content.get('study')}, the key to study {key['study']}; give files of one study"
        )
    boxes = content.get("responses")
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise UserError(f"{file}: responses: expected a list with an object per box, as a page saves it")
    known_responses: set[tuple[str, str | None]] = set()
    for question, value_of in (item for box in boxes for item in box.items()):
        if question not in allowed_by_question:
            raise UserError(f"{file}: {question}: unknown question; questions are {', '.join(allowed_by_question)}")
        allowed = allowed_by_question[question]
        if allowed.per_image != isinstance(value_of, dict):
            expected = "a response per image" if allowed.per_image else allowed.description
            raise UserError(f"{file}: {question}={value_of}; expected {expected}")
        for image, value in value_of.items() if allowed.per_image else [(None, value_of)]:
            if image is not None and image not in key["images"]:
                raise UserError(f"{file}: {question}={value_of}; expected an image of the key, not {image}")
            if not allowed.is_allowed(value):
                raise UserError(f"{file}: {question}={value_of}; expected {allowed.description}")
            if image is not None and (question, image) in known_responses:
                raise UserError(f"{file}: {question}: {image} has two responses")
            known_responses.add((question, image))
            yield Response(question, image, value)


def read_key(file: Path) -> dict[str, Any]:
    """The key that `make` wrote. Raises UserError if the file is no key."""
    key = read_object(file)
    if missing := {"study", "kind", "runs", "images"} - key.keys():
        raise UserError(
            f"key={file}: is no key, {', '.join(sorted(missing))} is missing; give the file that `make` wrote"
        )
    return key


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if there is none."""
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a JSON file that a page or `make` wrote")
    try:
        return parse_object(file.read_bytes())
    except DamagedFileError as error:
        raise UserError(f"{file}: {error}") from error
