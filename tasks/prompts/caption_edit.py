"""How captions change: which words are exchanged for which."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from classifier_lens.runner.types import CaptionEdit, UserError, indefinite_article


def replace_class(caption: str, label: str, target: str) -> CaptionEdit:
    """The caption with the target's name in the place of the class's; an article right before it follows the name."""
    pattern = re.compile(rf"\b(an? )?{re.escape(label)}\b", flags=re.IGNORECASE)
    changed = pattern.sub(
        lambda found: f"{indefinite_article(target)} {target}" if found[1] else target, caption, count=1
    )
    return CaptionEdit(caption, changed, label, target)


def replace_phrase(caption: str, phrase: str, target: str) -> CaptionEdit | None:
    """The caption with one phrase in the place of another; None if the phrase does not stand there."""
    edit = replace_phrases(caption, {phrase: target})
    return None if edit is None else replace(edit, source_words=phrase)  # as the user wrote it


def replace_phrases(caption: str, changes: Mapping[str, str]) -> CaptionEdit | None:
    """The caption with phrases in the places of others; the words that change are those from the first to the last.
    None if one of them does not stand there, or none is given."""
    found = [(re.search(rf"\b{re.escape(old)}\b", caption, flags=re.IGNORECASE), new) for old, new in changes.items()]
    spans = sorted((*match.span(), new) for match, new in found if match is not None)
    if not spans or len(spans) < len(changes):
        return None
    first, last = spans[0][0], spans[-1][1]
    words, place = "", first
    for start, end, new in spans:
        words, place = words + caption[place:start] + new, end
    return CaptionEdit(caption, caption[:first] + words + caption[last:], caption[first:last], words)


def format_prompt(template: str, name: str) -> str:
    """A prompt from a template with `{article}` and `{label}`. Raises UserError for other fields."""
    try:
        return template.format(article=indefinite_article(name), label=name)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"template '{template}': allowed fields are {{article}} and {{label}}") from error
