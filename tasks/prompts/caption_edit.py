"""Edits of captions: class names and phrases are replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from classifier_lens.runner.types import CaptionEdit, UserError, indefinite_article


def replace_class(caption: str, label: str, target: str) -> CaptionEdit:
    """The caption with the class name replaced by the target's; an article right before it is adapted."""
    pattern = re.compile(rf"\b(an? )?{re.escape(label)}\b", flags=re.IGNORECASE)
    changed = pattern.sub(
        lambda match: f"{indefinite_article(target)} {target}" if match[1] else target, caption, count=1
    )
    return CaptionEdit(caption, changed, label, target)


def replace_phrase(caption: str, phrase: str, target: str) -> CaptionEdit | None:
    """The caption with one phrase replaced by another; None if it does not contain the phrase."""
    edit = replace_phrases(caption, {phrase: target})
    return None if edit is None else replace(edit, source_words=phrase)  # as the user wrote it


def replace_phrases(caption: str, changes: Mapping[str, str]) -> CaptionEdit | None:
    """The caption with phrases replaced, old -> new; the edited words are those from the first to the last replacement.
    None without replacements, and if the caption does not contain all old phrases."""
    matches = [(re.search(rf"\b{re.escape(old)}\b", caption, flags=re.IGNORECASE), new) for old, new in changes.items()]
    spans = sorted((*match.span(), new) for match, new in matches if match is not None)
    if not spans or len(spans) < len(changes):
        return None
    first, last = spans[0][0], spans[-1][1]
    target_words, position = "", first
    for start, end, new in spans:
        target_words, position = target_words + caption[position:start] + new, end
    return CaptionEdit(caption, caption[:first] + target_words + caption[last:], caption[first:last], target_words)


def format_prompt(template: str, name: str) -> str:
    """A prompt from a template with `{article}` and `{label}`. Raises UserError for other fields."""
    try:
        return template.format(article=indefinite_article(name), label=name)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"template '{template}': allowed fields are {{article}} and {{label}}") from error
