"""Which phrase a counterfactual starts with, on pictures whose reds are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.tensor_cache import TensorCache
from runner.types import Edit, UserError
from tasks.surroundings import Surroundings
from tests.tasks.tiny import Colours, Maker, classifier_of, noise, world

REDS = {"on sand": 0.2, "in snow": 0.5, "on dry grass": 0.3}
CAPTION = "an image of a small urn on dry grass, with a flag"


def red(images: Tensor) -> Tensor:
    return images[:, 0].mean(dim=(1, 2))


def edit_of(caption: str, sign: float, maker: Maker | None = None, **changes: Any) -> Edit:
    settings: dict[str, Any] = {"phrases": list(REDS), "samples": 2, "prompt": "a photograph of {phrase}"}
    own = world(noise(3), classifier_of(Colours(torch.eye(3).tolist())), generator=maker or Maker(REDS))
    return Surroundings(**(settings | changes)).edit(caption, "urn", red, sign, own, TensorCache(None))


@pytest.mark.parametrize(("sign", "best"), [(1.0, "in snow"), (-1.0, "on sand")])
def test_the_phrase_with_the_highest_or_lowest_mean_takes_the_place_of_the_captions_own(sign: float, best: str) -> None:
    target = f"an image of a small urn {best}, with a flag"
    assert edit_of(CAPTION, sign) == Edit(CAPTION, target, "on dry grass", best)


def test_every_phrase_is_drawn_behind_the_class_with_the_same_seeds() -> None:
    maker = Maker(REDS)
    edit_of(CAPTION, 1.0, maker)
    assert [prompt for prompt, _ in maker.asked] == [f"a photograph of an urn {p}" for p in REDS for _ in range(2)]
    assert len({seed for _, seed in maker.asked}) == 2


@pytest.mark.parametrize(
    ("caption", "changes"),
    [
        ("a photograph of an urn in snow", {}),  # the best already
        ("a photograph of an urn", {}),  # says nothing of the ground
        (CAPTION, {"phrases": None}),
    ],
)
def test_other_captions_stay_as_they_are(caption: str, changes: dict[str, Any]) -> None:
    assert edit_of(caption, 1.0, **changes) == Edit.unchanged(caption, "urn")


def test_a_caption_without_a_phrase_costs_no_picture() -> None:
    maker = Maker(REDS)
    edit_of("a photograph of an urn", 1.0, maker)
    assert maker.asked == []


def test_settings_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^task\.surroundings\.samples=0: allowed are 1 and above$"):
        edit_of(CAPTION, 1.0, samples=0)
    with pytest.raises(UserError, match=r"^task\.surroundings\.prompt=a photograph: has to contain \{phrase\}"):
        edit_of(CAPTION, 1.0, prompt="a photograph")
