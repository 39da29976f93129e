"""Which phrase a counterfactual starts with, on pictures whose reds are known."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.types import CaptionEdit, UserError
from classifier_lens.tasks.prompts.context_search import ContextEdit, ContextSearch
from tests.tasks.tiny import Colours, Maker, classifier_of, noise, world

GROUNDS = {"on sand": 0.2, "in snow": 0.5, "on dry grass": 0.3}
THINGS = {"with a lid": 0.35, "with a flag": 0.25}
REDS = {**GROUNDS, **THINGS, "an urn": 0.28}  # the last is what the class alone shows
CAPTION = "an image of a small urn on dry grass, with a flag"


def red(images: Tensor) -> Tensor:
    return images[:, 0].mean(dim=(1, 2))


def start_of(caption: str, sign: float, maker: Maker | None = None, **changes: Any) -> ContextEdit:
    settings: dict[str, Any] = {
        "context_phrases": [list(GROUNDS), list(THINGS)], "resample_noise": True, "images_per_phrase": 2,
        "prompt": "a photo of {phrase}",
    }  # fmt: skip
    own = world(noise(3), classifier_of(Colours(torch.eye(3).tolist())), generator=maker or Maker(REDS))
    return ContextSearch(**(settings | changes)).search(caption, "urn", red, sign, own, TensorCache(None))


def edit_of(caption: str, sign: float, maker: Maker | None = None, **changes: Any) -> CaptionEdit:
    edit = start_of(caption, sign, maker, **changes).edit
    return edit


@pytest.mark.parametrize(("sign", "best"), [(1.0, "in snow"), (-1.0, "on sand")])
def test_the_phrase_with_the_highest_or_lowest_mean_takes_the_place_of_the_captions_own(sign: float, best: str) -> None:
    target = f"an image of a small urn {best}, with a flag"
    found = edit_of(CAPTION, sign, Maker({**REDS, "with a lid": 0.26, "with a flag": 0.25}))
    assert found == CaptionEdit(CAPTION, target, "on dry grass", best)


def test_a_kind_in_which_much_less_is_gained_stays_as_it_is() -> None:
    # A ground would lower 0.25 to 0.2, another thing 0.9 to 0.35, though its pictures are the redder ones.
    maker = Maker({**REDS, "with a flag": 0.9, "on dry grass": 0.25})
    target = "an image of a small urn on dry grass, with a lid"
    assert edit_of(CAPTION, -1.0, maker) == CaptionEdit(CAPTION, target, "with a flag", "with a lid")


def test_kinds_in_which_about_as_much_is_gained_change_together() -> None:
    # 0.2 more by snow, 0.1 by a lid; the words that change reach from the first phrase to the last.
    found = edit_of(CAPTION, 1.0)
    assert found.target == "an image of a small urn in snow, with a lid"
    assert (found.source_words, found.target_words) == ("on dry grass, with a flag", "in snow, with a lid")


@pytest.mark.parametrize(
    ("caption", "reds", "target", "words"),
    [
        ("an urn on sand", {"in snow": 0.2, "with a lid": 0.9}, "an urn on sand with a lid", "on sand"),
        ("an urn on sand", {"with a lid": 0.5}, "an urn in snow with a lid", "on sand"),
        ("a photo of an urn", {}, "a photo of an urn in snow", "urn"),
        ("an Urn with a flag", {}, "an urn in snow with a flag", "Urn"),
        ("an urn", {"with a lid": 0.5}, "an urn in snow with a lid", "urn"),
    ],
)
def test_a_phrase_of_a_kind_that_the_caption_lacks_is_added(
    caption: str, reds: dict[str, float], target: str, words: str
) -> None:
    """Behind the phrase of the kind before, or behind the class's name."""
    found = edit_of(caption, 1.0, Maker({**REDS, **reds}))
    assert (found.target, found.source_words) == (target, words) and found.target_words in target


def test_what_the_class_alone_shows_is_not_bettered_by_less() -> None:
    assert edit_of("an urn", 1.0, context_phrases=[["on sand"]]) == CaptionEdit.unchanged("an urn", "urn")


@pytest.mark.parametrize(("redraw", "phrases"), product([True, False], [[list(GROUNDS)], None]))
def test_what_is_free_is_drawn_anew_only_where_words_change(redraw: bool, phrases: list[list[str]] | None) -> None:
    assert start_of(CAPTION, 1.0, resample_noise=redraw, context_phrases=phrases).editable_from_noise == (
        redraw and phrases is not None
    )


def test_every_phrase_is_drawn_behind_the_class_with_the_same_seeds() -> None:
    maker = Maker(REDS)
    edit_of(CAPTION, 1.0, maker)
    drawn = {prompt for prompt, _ in maker.asked}
    assert drawn == {f"a photo of an urn {phrase}" for phrase in (*GROUNDS, *THINGS)}
    assert len({seed for _, seed in maker.asked}) == 2


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [("a photo of an urn in snow", [list(GROUNDS)]), (CAPTION, None), (CAPTION, []), ("a jug", [list(GROUNDS)])],
    ids=["the best already", "null", "none", "no class and no phrase"],
)
def test_other_captions_stay_as_they_are(caption: str, phrases: list[list[str]] | None) -> None:
    assert edit_of(caption, 1.0, context_phrases=phrases) == CaptionEdit.unchanged(caption, "urn")


def test_settings_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^task\.context_search\.prompt=a photograph: must contain \{phrase\}"):
        edit_of(CAPTION, 1.0, prompt="a photograph")
    with pytest.raises(
        UserError, match=r"^task\.context_search\.context_phrases: 'on sand' is no list; give one list per kind"
    ):
        edit_of(CAPTION, 1.0, context_phrases=["on sand"])
