"""What an inversion is told about a picture that nobody described."""

from __future__ import annotations

import pytest
import torch

from models.caption import Template
from runner.types import Example

TEMPLATE = Template("a photograph of {article} {label}")


@pytest.mark.parametrize(
    ("label", "caption"),
    [
        ("goldfish", "a photograph of a goldfish"),
        ("airplane", "a photograph of an airplane"),
        ("Indigo bunting", "a photograph of an Indigo bunting"),
        ("steel arch bridge", "a photograph of a steel arch bridge"),
    ],
)
def test_the_template_is_filled_with_name_and_article(label: str, caption: str) -> None:
    assert TEMPLATE(Example("x", torch.zeros(3, 16, 16), label)) == caption


def test_a_picture_keeps_its_own_caption() -> None:
    assert TEMPLATE(Example("x", torch.zeros(3, 16, 16), "goldfish", "my goldfish at noon")) == "my goldfish at noon"
