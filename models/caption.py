"""Captions for pictures: what the inversion is told the picture shows."""

from __future__ import annotations

from dataclasses import dataclass

from runner.types import Example, article


@dataclass(frozen=True)
class Template:
    """The picture's own caption where it has one, else `template` with `{article}` and `{label}` filled in."""

    template: str

    def __call__(self, example: Example) -> str:
        if example.caption is not None:
            return example.caption
        return self.template.format(article=article(example.label), label=example.label)
