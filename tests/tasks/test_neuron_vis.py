"""Neuron visualisation: where units start, what is optimised, and what is measured, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.neuron_vis import BEST_WORD_IMAGE, TRAINING_IMAGE, NeuronVis, UnitVisualizationProblem
from classifier_lens.tasks.units.activation_ranking import MAX_TOP_IMAGES
from classifier_lens.tasks.units.addressing import FEATURES, Unit
from classifier_lens.tasks.units.word_activations import WordActivations
from tests.tasks.tiny import (
    Captions,
    Colours,
    Maker,
    Maps,
    Pictures,
    TaskCase,
    classifier_of,
    colour,
    mean_colors,
    noise,
    preserved_reference,
    result_images,
    same_scene,
    world,
)

# Reds 0, 0.1 … 0.7 in no order, greens the other way round.
TENTHS = [3, 0, 6, 2, 7, 1, 5, 4]
TRAINING = Pictures([colour(t / 10, 0.7 - t / 10, 0) for t in TENTHS], ["urn"] * 8, "tenths")
OBJECTS = {
    "x4": ["a crab", "sand"],
    "x2": ["sand", "the sky"],
    "x6": ["a flag"],
    "x1": ["grass"],
    "x5": ["grass", "a crab"],
}
REDS = {"a crab": 0.1, "sand": 0.4, "the sky": 0.2, "a flag": 0.3, "grass": 0.0, "urn": 0.0}
RED, GREEN = Unit(FEATURES, 0), Unit(FEATURES, 1)


def settings() -> dict[str, Any]:
    return {
        "training": TRAINING, "units": [0, 1], "top_images": 3, "max_objects": 8, "images_per_object": 2,
        "prompt": "a photograph of {phrase}", "num_seeds": 2, "saturation_ratio": None,
        "captioner": Captions(OBJECTS), "cache": TensorCache(None), "baseline": "none",
    }  # fmt: skip


CASE = TaskCase(NeuronVis, settings, noise(2), mean_colors, lambda: Maker(REDS))
task, pose = CASE.task, CASE.pose


def tried(problem: UnitVisualizationProblem) -> WordActivations:
    """What the unit answers to the words that were tried."""
    assert problem.word_activations is not None
    return problem.word_activations


def test_so_many_problems_per_unit_that_differ_in_their_seed() -> None:
    found, total = pose(task())
    assert total == 4 and [p.name for p in found] == [f"features-{n}-{k}" for n in (0, 1) for k in (0, 1)]
    assert [p.unit for p in found] == [RED, RED, GREEN, GREEN]
    assert len({p.seed for p in found}) == 4
    for problem in found:
        assert (
            problem.image is None
            and problem.preserve == "none"
            and problem.image_name == f"features-{problem.unit.index}"
        )
        assert problem.other_units == ((GREEN,) if problem.unit == RED else (RED,))


def test_a_unit_starts_from_the_word_that_excites_it_most() -> None:
    """The reddest pictures are x4, x2 and x6, which show crab, sand, sky and a flag; sand is the reddest word."""
    (first, *_), _ = pose(task())
    assert list(tried(first).means) == ["a crab", "sand", "the sky", "a flag"] and tried(first).best_word == "sand"
    assert first.edit.source == first.edit.target == "a photograph of sand" and first.edit.source_words == "sand"
    assert torch.equal(first.load_top_example(), TRAINING[4].image)
    assert not any(isinstance(held, Tensor) for own in (first, first.word_activations) for held in vars(own).values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_images": 1}, ["a crab", "sand"]),
        ({"top_images": 2, "max_objects": 2}, ["a crab", "sand"]),
        ({"max_objects": 3}, ["a crab", "sand", "the sky"]),
        ({"top_images": 8}, ["a crab", "sand", "the sky", "a flag", "urn", "grass"]),
        ({"captioner": Captions()}, ["urn"]),
    ],
)
def test_only_the_best_pictures_are_asked_for_words_and_each_is_tried_once(
    changes: dict[str, Any], words: list[str]
) -> None:
    maker = Maker(REDS)
    (first,), _ = pose(task(units=[0], num_seeds=1, **changes), generator=maker)
    assert list(tried(first).means) == words
    asked = [prompt.removeprefix("a photograph of ") for prompt, _ in maker.asked]
    assert asked == [word for word in words for _ in range(2)], "two samples each"


def test_another_unit_has_other_best_pictures() -> None:
    found, _ = pose(task())
    assert torch.equal(found[2].load_top_example(), TRAINING[1].image) and list(tried(found[2]).means) == [
        "grass",
        "a crab",
        "urn",
    ]


@pytest.mark.parametrize("limit", [1, 3, 9])
def test_a_limit_takes_the_first_and_counts_all(limit: int) -> None:
    everything, _ = pose(task())
    some, total = pose(task(), limit)
    assert total == 4 and [(p.name, p.seed) for p in some] == [(p.name, p.seed) for p in everything[:limit]]


def test_units_are_chosen_by_the_ranking_over_the_training_pictures() -> None:
    """Red and green spread over 0 … 0.7, blue not at all; red has the larger weight."""
    classifier = classifier_of(Colours([[2, 0, 5], [0, 1, 0], [0, 0, 1]]))
    found, total = task(units="top:2", num_seeds=1).problems(world(noise(2), classifier, None, Maker(REDS)))
    assert total == 2 and [p.unit for p in found] == [RED, GREEN]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"units": [3]}, "task.units=features:3: allowed are features:0 … features:2"),
        ({"units": ["maps:0"]}, "no module maps"),
        ({"units": "best:2"}, "no module best"),
        ({"prompt": "{label}"}, "task.prompt={label}: must contain {phrase}"),
        ({"top_images": MAX_TOP_IMAGES + 1}, f"task.top_images={MAX_TOP_IMAGES + 1}: allowed are 1 … {MAX_TOP_IMAGES}"),
    ],
)
def test_other_settings_are_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        pose(task(**changes))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_objective_is_the_activation_itself() -> None:
    found, _ = pose(task(num_seeds=1))
    reference = preserved_reference(torch.stack([colour(0.8, 0.1, 0), colour(0.8, 0.1, 0)]))
    objective = task().objective(found, reference, mean_colors())
    assert list(objective) == ["unit_activation"]
    weight, term = objective["unit_activation"]
    assert weight == 1 and term(same_scene(reference)).tolist() == pytest.approx([-0.8, -0.1]), "lower is better"


def test_beyond_enough_an_activation_counts_no_more() -> None:
    """Enough is 0.8 of the best training picture's 0.7, for either unit."""
    found, _ = pose(task(num_seeds=1))
    assert [p.ranking.top_values[0, p.unit.index].item() for p in found] == pytest.approx([0.7, 0.7])
    reference = preserved_reference(torch.stack([colour(0.9, 0, 0), colour(0, 0.5, 0)]))
    _, term = task(saturation_ratio=0.8).objective(found, reference, mean_colors())["unit_activation"]
    assert term(same_scene(reference)).tolist() == pytest.approx([-0.56, -0.5])


def test_what_is_measured_by_hand() -> None:
    """Red 0.9 where the training pictures have 0.35 ± 0.2291 and at most 0.7; green 0.1 is as far below."""
    (problem, *_), _ = pose(task())
    pictures = result_images(colour(0.4, 0, 0), colour(0.9, 0.1, 0))
    std = torch.tensor(TENTHS).double().div(10).std(correction=0).item()
    found = task().measure(problem, pictures, mean_colors())
    assert found == {
        "success": True, "criterion": "0.9 > 0.7, the highest activation in training images",
        "target": "features:0", "unit": "features:0", "best_word": "sand",
        "activation_before": pytest.approx(0.4), "activation_after": pytest.approx(0.9),
        "training_max": pytest.approx(0.7), "word_max": pytest.approx(0.5),
        "word_means": pytest.approx({"a crab": 0.15, "sand": 0.45, "the sky": 0.25, "a flag": 0.35}),
        "activation_zscore": pytest.approx(0.55 / std), "other_units_zscore": pytest.approx(-0.25 / std),
        "activations": pytest.approx({"features:0": 0.9, "features:1": 0.1}),
    }  # fmt: skip


@pytest.mark.parametrize(("red", "success"), [(0.69, False), (0.71, True)])
def test_a_success_exceeds_the_best_training_picture(red: float, success: bool) -> None:
    (problem, *_), _ = pose(task())
    found = task().measure(problem, result_images(colour(0, 0, 0), colour(red, 0, 0)), mean_colors())
    assert found["success"] is success


def test_a_unit_alone_has_no_others() -> None:
    (problem, *_), _ = pose(task(units=[0]))
    pictures = result_images(colour(0, 0, 0), colour(1, 0, 0))
    assert task().measure(problem, pictures, mean_colors())["other_units_zscore"] is None


def test_only_units_of_the_same_module_are_compared() -> None:
    classifier, training = classifier_of(Maps()), noise(12)
    own = task(training=training, units=["maps:1", "early:0", "maps:2"], num_seeds=1, captioner=Captions())
    found, _ = own.problems(world(noise(2), classifier, None, Maker(dict.fromkeys(training.labels, 0.2))))
    draw = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = result_images(draw[0], draw[1])
    first, second, third = (own.measure(problem, pictures, classifier) for problem in found)
    assert first["other_units_zscore"] == pytest.approx(third["activation_zscore"])
    assert third["other_units_zscore"] == pytest.approx(first["activation_zscore"])
    assert second["other_units_zscore"] is None
    assert set(first["activations"]) == set(third["activations"]) == {"maps:1", "maps:2"}
    assert set(second["activations"]) == {"early:0"}


def test_the_training_picture_and_the_words_are_shown() -> None:
    (problem, *_), _ = pose(task())
    shown = task().illustrate(problem, result_images(colour(0, 0, 0)), mean_colors())
    assert torch.equal(shown[TRAINING_IMAGE], TRAINING[4].image)
    torch.testing.assert_close(shown[BEST_WORD_IMAGE], colour(0.5, 0, 0))


def test_a_summary_averages_each_units_pictures() -> None:
    def record(unit: str, after: float, success: bool) -> dict[str, Any]:
        return {
            "unit": unit,
            "activation_after": after,
            "success": success,
            "training_max": 2.0,
            "word_max": 1.0,
            "best_word": "urn",
        }

    records = [record("features:0", 1.0, False), record("features:1", 5.0, True), record("features:0", 4.0, True)]
    shared = {"training_max": 2.0, "word_max": 1.0, "best_word": "urn"}
    assert task().summarize(records) == {
        "results": 3, "successes": 2, "features:0": {"activation": 2.5, **shared},
        "features:1": {"activation": 5.0, **shared},
    }  # fmt: skip


def test_without_a_generator_no_word_is_tried() -> None:
    """The unit's best training image is known all the same; record and summary have nothing of words."""
    nothing = Maker()
    nothing.can_generate = False
    own = task(units=[0], num_seeds=1)
    (problem,), _ = pose(own, generator=nothing)
    assert problem.word_activations is None and problem.edit.source == "" and not nothing.asked
    assert torch.equal(problem.load_top_example(), TRAINING[4].image)
    pictures = result_images(colour(0.2, 0, 0), colour(0.9, 0, 0))
    assert own.illustrate(problem, pictures, mean_colors()).keys() == {TRAINING_IMAGE}
    record = own.measure(problem, pictures, mean_colors())
    assert record["success"] and not [key for key in record if "word" in key]
    assert own.summarize([record])["features:0"].keys() == {"activation", "training_max"}


def test_rankings_and_pictures_of_words_are_kept(tmp_path: Path) -> None:
    maker, cache = Maker(REDS), TensorCache(str(tmp_path))
    first, _ = pose(task(cache=cache), generator=maker)
    drawn = len(maker.asked)
    words = {word for problem in first for word in tried(problem).means}
    assert drawn == 2 * len(words), "each word's two pictures, for both units and seeds"
    again, _ = pose(task(cache=cache), generator=maker)
    assert len(maker.asked) == drawn and [tried(p).means for p in again] == [tried(p).means for p in first]
