"""Which word excites a unit, on pictures whose reds are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from classifier_lens.runner.protocols import TaskInputs
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.units.addressing import FEATURES, Unit
from classifier_lens.tasks.units.word_activations import generate_images, measure_word_activations
from tests.tasks.tiny import Colours, Maker, cache_in, classifier_of, colour, noise, world

TEMPLATE = "a photograph of {phrase}"
REDS = {"a crab": 0.2, "an urn": 0.5, "flags": 0.3}
RED, GREEN = Unit(FEATURES, 0), Unit(FEATURES, 1)


@pytest.fixture
def maker() -> Maker:
    return Maker(REDS)


@pytest.fixture
def own(maker: Maker) -> TaskInputs:
    return world(noise(3), classifier_of(Colours(torch.eye(3).tolist())), generator=maker)


def test_means_and_the_best_word_by_hand(own: TaskInputs, tmp_path: Path) -> None:
    """The three pictures of a word have its red, and a tenth and two tenths more."""
    found = measure_word_activations(RED, list(REDS), TEMPLATE, 3, own, cache_in(tmp_path))
    assert found.best_word == "an urn" and list(found.means) == list(REDS)
    assert found.means == pytest.approx({"a crab": 0.3, "an urn": 0.6, "flags": 0.4})
    assert found.max_activation == pytest.approx(0.7)
    torch.testing.assert_close(found.best_image(), colour(0.7, 0, 0))


def test_the_mean_decides_and_not_the_single_best_picture(tmp_path: Path) -> None:
    """One very red picture of a crab among pale ones; urns are all somewhat red."""

    class Spread(Maker):
        def sample(self, prompts: list[str], seeds: list[int]) -> torch.Tensor:  # type: ignore[override]
            reds = [0.4] * 3 if "urn" in prompts[0] else [0.0, 0.9, 0.0]
            return torch.stack([colour(red, 0, 0) for red in reds])

    own = world(noise(3), classifier_of(Colours(torch.eye(3).tolist())), generator=Spread())
    found = measure_word_activations(RED, ["a crab", "an urn"], TEMPLATE, 3, own, cache_in(tmp_path))
    assert found.best_word == "an urn" and found.max_activation == pytest.approx(0.9)
    torch.testing.assert_close(found.best_image(), colour(0.4, 0, 0))


def test_a_unit_that_words_do_not_excite_has_the_first_of_them(own: TaskInputs, tmp_path: Path) -> None:
    found = measure_word_activations(GREEN, ["flags", "an urn"], TEMPLATE, 2, own, cache_in(tmp_path))
    assert found.best_word == "flags" and found.means == {"flags": 0, "an urn": 0} and found.max_activation == 0


def test_prompts_follow_the_template_and_all_words_have_the_same_seeds(
    own: TaskInputs, maker: Maker, tmp_path: Path
) -> None:
    measure_word_activations(RED, ["a crab", "an urn"], TEMPLATE, 2, own, cache_in(tmp_path))
    prompts = ["a photograph of a crab"] * 2 + ["a photograph of an urn"] * 2
    assert [prompt for prompt, _ in maker.asked] == prompts
    seeds = [seed for _, seed in maker.asked]
    assert seeds[:2] == seeds[2:] and len(set(seeds)) == 2


def test_a_template_without_a_place_for_the_word_is_refused_in_one_line(own: TaskInputs, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        measure_word_activations(RED, ["a crab"], "a photograph of {label}", 2, own, cache_in(tmp_path))
    assert str(caught.value).startswith("task.prompt=a photograph of {label}: must contain {phrase}")
    assert "\n" not in str(caught.value)


def test_pictures_are_drawn_once_for_all_units_and_runs(own: TaskInputs, maker: Maker, tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    first = generate_images("a crab", TEMPLATE, 4, own, cache)
    for unit in (RED, GREEN):
        measure_word_activations(unit, ["a crab"], TEMPLATE, 4, own, cache)
    assert len(maker.asked) == 4 and torch.equal(generate_images("a crab", TEMPLATE, 4, own, cache), first)


def test_each_thing_that_the_pictures_depend_on_is_part_of_their_key(
    own: TaskInputs, maker: Maker, tmp_path: Path
) -> None:
    cache = cache_in(tmp_path)
    generate_images("a crab", TEMPLATE, 2, own, cache)
    other = Maker(REDS)
    other.fingerprint = "another"
    for template, samples, where in (
        ("an image of {phrase}", 2, own),
        (TEMPLATE, 3, own),
        (TEMPLATE, 2, world(own.dataset, own.classifier, generator=maker, seed=1)),
        (TEMPLATE, 2, world(own.dataset, own.classifier, generator=other)),
    ):
        maker.asked, other.asked = [], []
        generate_images("a crab", template, samples, where, cache)
        assert len(maker.asked + other.asked) == samples
