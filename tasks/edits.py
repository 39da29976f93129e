"""How captions change: which words are exchanged for which."""

from __future__ import annotations

import re

from runner.types import Edit, UserError, article


def replace_class(caption: str, label: str, target: str) -> Edit:
    """The caption with the target's name in the place of the class's; an article right before it follows the name."""
    pattern = re.compile(rf"\b(an? )?{re.escape(label)}\b", flags=re.IGNORECASE)
    changed = pattern.sub(lambda found: f"{article(target)} {target}" if found[1] else target, caption, count=1)
    return Edit(caption, changed, label, target)


def replace_phrase(caption: str, phrase: str, target: str) -> Edit | None:
    """The caption with one phrase in the place of another; None if the phrase does not stand there."""
    pattern = re.compile(rf"\b{re.escape(phrase)}\b", flags=re.IGNORECASE)
    if pattern.search(caption) is None:
        return None
    return Edit(caption, pattern.sub(lambda _: target, caption, count=1), phrase, target)


def prompt_of(template: str, name: str) -> str:
    """A prompt from a template with `{article}` and `{label}`. Raises UserError for other fields."""
    try:
        return template.format(article=article(name), label=name)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"template '{template}': allowed fields are {{article}} and {{label}}") from error
