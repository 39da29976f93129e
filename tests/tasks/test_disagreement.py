"""Disagreement: which problems are posed, which way an answer is pulled, and what is measured, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.runner.types import CaptionEdit, UserError
from classifier_lens.tasks.analysis.retrieval import IMAGE_NEIGHBORS, TEXT_NEIGHBORS, Retrieval
from classifier_lens.tasks.disagreement import Disagreement, DisagreementProblem
from classifier_lens.tasks.prompts.caption_edit import format_prompt
from tests.tasks.tiny import (
    NAMES,
    SIDE,
    Colours,
    Embeddings,
    Maker,
    Maps,
    Pictures,
    TaskCase,
    cache_in,
    classifier_of,
    colour,
    noise,
    preserved_reference,
    result_images,
    same_scene,
    world,
)

E = math.log(8)
BLACK, RED, GREEN = colour(0, 0, 0), colour(1, 0, 0), colour(0, 1, 0)


def of_red(k: int) -> ImageClassifier:
    """Calls red class k and green the last one, with probability 8/10; black is anything, with 1/3."""
    weight = torch.zeros(3, 3)
    weight[k, 0] = weight[2, 1] = E
    return classifier_of(Colours(weight.tolist()))


def settings() -> dict[str, Any]:
    return {
        "rival": of_red(1), "mode": "confidence", "margin_saturation": 99.0, "classes": None,
        "directions": ["over", "under"], "num_seeds": 2, "num_initializations": 1, "start_classes": "own",
        "context_phrases": None, "prompt": "a photograph of {article} {label}", "min_confidence_gap": 0.5,
        "baseline": "none", "retrieval": None,
    }  # fmt: skip


CASE = TaskCase(Disagreement, settings, noise(3), lambda: of_red(0))
task, pose = CASE.task, CASE.pose


def test_a_problem_per_class_seed_and_direction() -> None:
    found, total = pose(task())
    assert total == len(found) == len({p.name for p in found}) == 3 * 2 * 2
    assert found[0].name == "rock-crab-0-over" and found[-1].name == "urn-1-under"
    for problem in found:
        label = NAMES[problem.target]
        assert problem.image is None and problem.mask is None and problem.preserve == "none"
        prompt = f"a photograph of {'an' if label == 'urn' else 'a'} {label}"
        assert problem.edit.source == problem.edit.target == prompt
        assert problem.edit.source_words == label and problem.prompt_check == (prompt, problem.target)


def test_both_directions_start_from_the_same_picture_and_no_others_do() -> None:
    found, _ = pose(task())
    starts: dict[str, list[DisagreementProblem]] = {}
    for problem in found:
        starts.setdefault(problem.image_name, []).append(problem)
    assert len(starts) == 6
    for pair in starts.values():
        assert [p.direction for p in pair] == ["over", "under"]
        assert len({(p.seed, p.edit, p.target) for p in pair}) == 1
    assert len({p.seed for p in found}) == 6
    assert not {p.seed for p in found} & {p.seed for p in pose(task(), seed=1)[0]}


class Reds(Maker):
    """Of three seeds the second gives the reddest picture, the first the palest."""

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        self.asked += zip(prompts, seeds, strict=True)
        return torch.stack([colour(red, 0, 0) for red in (0.2, 0.9, 0.5)[: len(seeds)]])


@pytest.mark.parametrize("mode", ["confidence", "log_confidence", "margin"])
def test_of_several_starts_each_direction_takes_the_one_that_shows_most_of_it(mode: str) -> None:
    """The redder a picture, the more our classifier calls it the first class, and the less its rival does."""
    maker = Reds()
    own = task(classes=["rock crab"], num_initializations=3, mode=mode)
    found, total = own.problems(world(noise(3), of_red(0), generator=maker))
    assert total == 4 and {prompt for prompt, _ in maker.asked} == {"a photograph of a rock crab"}
    seeds = [seed for _, seed in maker.asked]
    assert len(seeds) == len({*seeds}) == 6, "both directions choose from the same pictures, drawn once"
    assert [p.seed for p in found] == [seeds[1], seeds[0], seeds[4], seeds[3]]


class Painter(Maker):
    """Paints what it is asked for: a rock crab dark, a viaduct green, an urn red; the later, the paler."""

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        self.asked += zip(prompts, seeds, strict=True)
        paint = {"crab": (0.3, 0, 0), "viaduct": (0, 1, 0), "urn": (1, 0, 0)}
        return torch.stack([
            colour(*(value * 0.8**i for value in paint[prompt.split()[-1]])) for i, prompt in enumerate(prompts)
        ])  # fmt: skip


@pytest.mark.parametrize(
    ("words", "drawn", "words_taken"),
    [
        ("own", 2, {"over": "rock crab", "under": "rock crab"}),
        ("all", 6, {"over": "urn", "under": "viaduct"}),
        (["viaduct", "Rock Crab"], 4, {"over": "rock crab", "under": "viaduct"}),
    ],
)
def test_the_start_is_the_picture_of_any_allowed_word_that_shows_most(
    words: Any, drawn: int, words_taken: dict[str, str]
) -> None:
    """Red is a rock crab to ours and a viaduct to its rival, green is neither; a pale picture shows less of it."""
    maker = Painter()
    own = task(classes=["rock crab"], num_seeds=1, num_initializations=2, start_classes=words)
    found, _ = own.problems(world(noise(3), of_red(0), generator=maker))
    assert len(maker.asked) == len({*maker.asked}) == drawn
    for problem in found:
        word = words_taken[problem.direction]
        prompt = format_prompt("a photograph of {article} {label}", word)
        assert problem.target == 0 and problem.edit == CaptionEdit.unchanged(prompt, word)
        assert problem.prompt_check == (prompt, NAMES.index(word))
        own_seeds = [seed for asked, seed in maker.asked if asked == prompt]
        assert problem.seed in own_seeds


def test_every_phrase_is_tried_behind_every_word() -> None:
    """The urn on grass is the reddest, and what is red our classifier calls a rock crab."""
    maker = Maker({"an urn on grass": 0.9, "an urn": 0.8, "rock crab": 0.3, "on grass": 0.1, "viaduct": 0.0})
    own = task(
        classes=["rock crab"], directions=["over"], num_seeds=1, start_classes="all", context_phrases=["", "on grass"]
    )
    (problem,), _ = own.problems(world(noise(3), of_red(0), generator=maker))
    prompt = "a photograph of an urn on grass"
    assert problem.edit == CaptionEdit.unchanged(prompt, "urn on grass") and problem.prompt_check == (
        prompt,
        NAMES.index("urn"),
    )
    assert {*maker.asked} >= {(prompt, problem.seed)} and len({prompt for prompt, _ in maker.asked}) == 3 * 2
    assert len({seed for _, seed in maker.asked}) == 3 * 2, "no two have a seed in common"


def test_pictures_of_all_words_serve_every_class() -> None:
    maker = Painter()
    found, _ = task(num_seeds=2, num_initializations=2, start_classes="all").problems(
        world(noise(3), of_red(0), generator=maker)
    )
    assert len(found) == 12 and len(maker.asked) == len({*maker.asked}) == 3 * 2 * 2


def test_a_single_start_is_not_drawn_beforehand() -> None:
    maker = Maker()
    task().problems(world(noise(3), of_red(0), generator=maker))
    assert maker.asked == []


@pytest.mark.parametrize("limit", [1, 5, 12, 99])
def test_a_limit_takes_the_first_and_counts_all(limit: int) -> None:
    everything, _ = pose(task())
    some, total = pose(task(), limit)
    assert some == everything[:limit] and total == 12


def test_chosen_classes_and_directions() -> None:
    found, total = pose(task(classes=["URN"], directions=["under"], num_seeds=1))
    assert total == 1 and [(p.name, p.target) for p in found] == [("urn-0-under", 2)]


@pytest.mark.parametrize(
    ("rival", "said"),
    [
        (classifier_of(Maps(), NAMES[::-1]), "need the same classes in the same order"),
        (classifier_of(Maps(), ["a", "b", "c"]), "need the same classes"),
        (classifier_of(Colours([[1.0, 0, 0]] * 2, [0, 0]), NAMES[:2]), "has 2 classes of the domain tiny"),
        (classifier_of(Maps(), domain="imagenet"), "domain imagenet, the classifier 3 of tiny"),
    ],
)
def test_a_rival_of_other_classes_or_another_domain_is_refused_in_one_line(rival: ImageClassifier, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        pose(task(rival=rival))
    assert str(caught.value).startswith("rival: ") and "\n" not in str(caught.value)


def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"task\.classes=urns: .*nearest are urn"):
        pose(task(classes=["viaduct", "urns"]))
    with pytest.raises(UserError, match=r"task\.start_classes=urns: .*nearest are urn"):
        pose(task(start_classes=["viaduct", "urns"]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mode": "loss"}, "task.mode=loss: allowed are confidence, log_confidence, margin"),
        ({"directions": ["over", "max"]}, "task.directions=max: allowed are over, under"),
        ({"start_classes": "any"}, "task.start_classes=any: allowed are own, all or names as [a, b]"),
        ({"start_classes": []}, "task.start_classes=[]: allowed are own, all or names as [a, b]"),
    ],
)
def test_other_settings_are_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        pose(task(**changes))
    assert str(caught.value) == said


def test_an_unknown_field_of_the_prompt_is_refused() -> None:
    with pytest.raises(UserError, match=r"allowed fields are \{article\} and \{label\}"):
        pose(task(prompt="a photograph of {klass}"))


# --- what is optimised and measured --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["confidence", "log_confidence", "margin"])
def test_the_objective_pulls_each_direction_its_own_way(mode: str) -> None:
    """On red our confidence in the first class is 8/10 and the other's 1/10; lower is better."""
    own = task(mode=mode, classes=["rock crab"], num_seeds=1)
    over_under, _ = pose(own)
    objective = own.objective(over_under, preserved_reference(torch.stack([RED, RED])), of_red(0))
    ((weight, term),) = objective.values()
    gap = {"confidence": 0.7, "log_confidence": E, "margin": 2 * E}[mode]
    assert weight == 1 and term(same_scene(preserved_reference(torch.stack([RED, RED])))).tolist() == pytest.approx(
        [-gap, gap]
    )


def measured(own: Disagreement, classifier: ImageClassifier, name: str, **neighbors: Tensor) -> dict[str, Any]:
    """From black to red."""
    (problem,) = [p for p in pose(own)[0] if p.name == name]
    return {**own.measure(problem, result_images(BLACK, RED, task_images=neighbors), classifier)}


def test_what_is_measured_by_hand() -> None:
    found = measured(task(min_confidence_gap=0.7 - 1e-6), of_red(0), "rock-crab-0-over")
    assert found == {
        "success": True, "criterion": "0.7 > 0.7, the required gap of both confidences",
        "target": "rock crab", "direction": "over", "gap_before": 0, "gap_after": pytest.approx(0.7),
        "predicted_before": found["predicted_before"], "predicted_after": "rock crab",
        "second_predicted_after": "viaduct", "confidence_before": {"rock crab": pytest.approx(1 / 3)},
        "confidence_after": {"rock crab": pytest.approx(0.8)}, "second_confidence_before": pytest.approx(1 / 3),
        "second_confidence_after": pytest.approx(0.1),
    }  # fmt: skip
    assert found["predicted_before"] in NAMES
    assert not measured(task(min_confidence_gap=0.71), of_red(0), "rock-crab-0-over")["success"]
    other = measured(task(), of_red(0), "rock-crab-0-under")
    assert other["gap_after"] == pytest.approx(-0.7) and not other["success"]
    under = measured(task(), of_red(0), "viaduct-0-under")
    assert under["gap_after"] == pytest.approx(0.7) and under["success"]


# Red is called otherwise by the two, green alike.
FOUND = {
    "image_neighbor_01": RED, "image_neighbor_02": GREEN, "image_neighbor_03": RED, "text_neighbor_01": GREEN,
    "image_neighborhood": RED,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "near", "text"),
    [
        ("rock-crab-0-over", 2, 0),
        ("rock-crab-0-under", 0, 0),
        ("viaduct-0-under", 2, 0),
        ("viaduct-0-over", 0, 0),
        ("urn-0-over", 0, 0),
    ],
)
def test_real_pictures_are_counted_that_show_the_same(name: str, near: int, text: int) -> None:
    found = measured(task(), of_red(0), name, **FOUND)
    assert (found["image_neighbors_disagreeing"], found["image_neighbors"]) == (near, 3)
    assert (found["text_neighbors_disagreeing"], found["text_neighbors"]) == (text, 1)


@pytest.mark.parametrize("k", range(12))
def test_swapping_the_classifiers_swaps_the_directions(k: int) -> None:
    ours, theirs = classifier_of(Maps(0)), classifier_of(Maps(1))
    first, second = task(rival=theirs, min_confidence_gap=0.01), task(rival=ours, min_confidence_gap=0.01)
    everything = first.problems(world(noise(3), ours))[0]
    problem, twin = everything[k], everything[k ^ 1]
    draw = torch.Generator().manual_seed(k)
    before, result, nearest, second_nearest = torch.rand(4, 3, SIDE, SIDE, generator=draw)
    pictures = result_images(
        before, result, task_images={"image_neighbor_01": nearest, "image_neighbor_02": second_nearest}
    )
    found, turned = (
        dict[str, Any](own.measure(posed, pictures, classifier))
        for own, posed, classifier in ((first, problem, ours), (second, twin, theirs))
    )
    same = ("gap_before", "gap_after", "image_neighbors_disagreeing", "image_neighbors", "success", "target")
    for key in same:
        assert found[key] == turned[key], key
    assert found["predicted_after"] == turned["second_predicted_after"]
    assert found["confidence_after"] == {found["target"]: turned["second_confidence_after"]}
    reference = preserved_reference(result[None])
    (_, term), (_, other) = (
        *first.objective([problem], reference, ours).values(), *second.objective([twin], reference, theirs).values(),
    )  # fmt: skip
    torch.testing.assert_close(term(same_scene(reference)), other(same_scene(reference)))


def test_nearest_pictures_are_shown_where_they_are_asked_for(tmp_path: Any) -> None:
    (problem, *_), _ = pose(task())
    assert task().illustrate(problem, result_images(RED), of_red(0)) == {}
    real = Pictures([GREEN, RED, colour(0, 0, 1)], NAMES)
    clip = Embeddings({problem.edit.source: [0.0, 1.0, 0.1]})
    shown = task(retrieval=Retrieval(real, clip, 2, SIDE, cache_in(tmp_path))).illustrate(
        problem, result_images(RED), of_red(0)
    )
    assert list(shown) == [series.image(i) for series in (IMAGE_NEIGHBORS, TEXT_NEIGHBORS) for i in (1, 2)]
    assert torch.equal(shown[IMAGE_NEIGHBORS.image(1)], RED) and torch.equal(shown[TEXT_NEIGHBORS.image(1)], GREEN)


def test_a_summary_counts_each_direction() -> None:
    records = [{"direction": d, "success": s} for d, s in (("over", True), ("under", False), ("over", False))]
    assert task().summarize(records) == {
        "over": {"results": 2, "successes": 1}, "under": {"results": 1, "successes": 0},
    }  # fmt: skip
