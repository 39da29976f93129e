"""A question that a network keeps from being asked fails by name; what everything follows from ends in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.types import CaptionEdit, NonFiniteError, Problem, UnreadableImageError, UserError
from classifier_lens.tasks.problems.problem_checks import apply_to_training_images, problems_or_failure
from classifier_lens.tasks.prompts.context_search import ContextSearch
from classifier_lens.tasks.units.activation_ranking import most_confident_indices, rank_units
from classifier_lens.tasks.units.addressing import FEATURES
from classifier_lens.tasks.units.npca import class_components
from tests.conftest import uvce
from tests.tasks.test_disagreement import task as disagreement
from tests.tasks.test_neuron_cf import task as neuron_cf
from tests.tasks.test_npca_cf import task as npca_cf
from tests.tasks.tiny import NAMES, SIDE, Colours, Maker, Pictures, classifier_of, colour, world

PLAIN = Problem(name="a", seed=0, edit=CaptionEdit.unchanged("a", "a"), load=None, image_name="a", preserve="none")
IDENTITY = torch.eye(3).tolist()


class Picky(nn.Module):
    """The features are an image's mean colours; an image that is all blue, or that shows more red than any real one, it
    does not answer to: it raises an error, or has no number."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.raises, self.inner, self.odd = raises, Colours(IDENTITY), False
        self.head = self.inner.head

    def forward(self, x: Tensor) -> Tensor:
        colours = x.mean(dim=(2, 3))
        odd = ((colours[:, 2] > 0.99) | (colours[:, 0] > 1.5)) & self.odd
        if self.raises and odd.any():
            raise RuntimeError("too blue\nor too red")
        out: Tensor = self.head(torch.where(odd[:, None], torch.full_like(colours, torch.nan), colours))
        return out


def picky(raises: bool) -> Any:
    """Odd after its construction, in which networks are tried on images of noise."""
    classifier = classifier_of(Picky(raises))
    classifier.network.odd = True
    return classifier


COLOURS = [colour(0.9, 0.1, 0.2), colour(0.1, 0.8, 0.2), colour(0.0, 0.0, 1.0), colour(0.7, 0.2, 0.3)]
DATA = Pictures(COLOURS, [NAMES[0], NAMES[1], NAMES[0], NAMES[0]])
GOOD = Pictures([COLOURS[i] for i in (0, 1, 3, 0)], [NAMES[0], NAMES[1], NAMES[0], NAMES[0]], digest="good")
RAISES = pytest.mark.parametrize("raises", [False, True], ids=["NaN", "error"])


def told(problem: Problem) -> str:
    assert problem.error is not None
    return str(problem.error).splitlines()[0]


def asked(count: int, error: Exception) -> Callable[[], Iterator[Problem]]:
    def ask() -> Iterator[Problem]:
        yield from [replace(PLAIN, name=f"a{i}") for i in range(count)]
        raise error

    return ask


def test_what_was_asked_before_an_error_stays() -> None:
    first, second, third = problems_or_failure("x", asked(2, ValueError("no")))
    assert (first.name, second.name, third.name) == ("a0", "a1", "x") and first.error is None
    assert isinstance(third.error, ValueError) and third.load is None and third.preserve == "none"
    assert next(problems_or_failure("x", asked(1, ValueError("no")))).name == "a0", (
        "nothing is asked before it is wanted"
    )


EVERYBODYS = [UserError("a=b"), MemoryError(), RuntimeError("can't allocate memory"), OSError(28, "full")]


@pytest.mark.parametrize("error", [*EVERYBODYS, UnreadableImageError("gone")], ids=repr)
def test_what_is_nobodys_question_is_passed_on(error: Exception) -> None:
    with pytest.raises(type(error)):
        list(problems_or_failure("x", asked(0, error)))


@RAISES
@pytest.mark.parametrize("settings", [{"target": "confusion"}, {"mode": "error"}], ids=str)
def test_an_image_whose_target_cannot_be_chosen_fails_alone(raises: bool, settings: dict[str, Any]) -> None:
    found, _ = uvce(**settings).problems(world(DATA, picky(raises)))
    (bad,) = [p for p in found if p.error is not None]
    assert bad.name == "x2" and told(bad).startswith("too blue" if raises else "the classifier's ")
    assert isinstance(bad.error, RuntimeError if raises else NonFiniteError)
    others = ["x0", "x1", "x3"] if "target" in settings else []  # all of them are predicted as what they are
    assert [p.image_name for p in found if p.error is None] == others


@RAISES
@pytest.mark.parametrize("make", [neuron_cf, npca_cf])
def test_a_search_for_surroundings_fails_its_own_problems(raises: bool, make: Callable[..., Any]) -> None:
    searched = ContextSearch([["on sand", "in snow"]], False, 2, "a photograph of {phrase}")
    own = make(training=GOOD, context_search=searched, directions=["max"], **COUNTS[make])
    maker = Maker({"on sand": 5.0, "in snow": 0.1, "a rock crab": 0.4, "a viaduct": 0.2})
    found, total = own.problems(world(GOOD, picky(raises), generator=maker))
    assert found and len(found) == total and all(p.error is not None for p in found)
    assert len({p.name for p in found}) == len(found) and all(p.name.endswith("-max") for p in found)


COUNTS: dict[Any, dict[str, Any]] = {
    neuron_cf: {"units": [0], "label": None}, npca_cf: {"components": {NAMES[0]: [0]}, "images_per_component": 2},
}  # fmt: skip


@RAISES
def test_a_start_that_cannot_be_compared_fails_its_own_problems(raises: bool) -> None:
    own = disagreement(rival=classifier_of(Colours(IDENTITY)), start_classes="own", context_phrases=["", "there"])
    maker = Maker({"rock crab": 5.0, "viaduct": 0.1, "urn": 0.2, "there": 0.3})
    found, _ = own.problems(world(GOOD, picky(raises), generator=maker))
    assert {p.name.startswith("rock-crab-") for p in found if p.error is not None} == {True}
    assert {p.name.split("-")[0] for p in found if p.error is None} == {"viaduct", "urn"}


@RAISES
@pytest.mark.parametrize(
    "look",
    [
        lambda net, cache: rank_units(net, FEATURES, DATA, SIDE, cache),
        lambda net, cache: most_confident_indices(net, DATA, SIDE, cache),
        lambda net, cache: class_components(net, NAMES[0], DATA, SIDE, cache),
    ],
    ids=["ranking", "most certain", "components"],
)
def test_a_training_image_that_a_network_does_not_answer_to_is_named(
    raises: bool, look: Callable[[Any, Any], Any]
) -> None:
    with pytest.raises(UserError, match=r"^classifier.target=tiny: fails on the training image x2 \(") as caught:
        look(picky(raises), TensorCache(None))
    assert "\n" not in str(caught.value) and "remove the image from" in str(caught.value)
    assert ("RuntimeError: too blue" in str(caught.value)) == raises and not isinstance(caught.value, NonFiniteError)


def test_images_that_fail_only_together_are_told_as_such() -> None:
    def look(images: Tensor) -> None:
        if len(images) > 1:
            raise ValueError("one at a time")

    with pytest.raises(UserError, match="the training image a or one of the 1 after it .ValueError: one at a time"):
        apply_to_training_images(picky(False), ["a", "b"], torch.zeros(2, 3, 4, 4), look)
