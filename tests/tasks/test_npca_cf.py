"""NPCA counterfactuals: which problems are posed, which way components are moved, and what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.types import CaptionEdit, UserError
from classifier_lens.tasks.npca_cf import ComponentCounterfactualProblem, NpcaCf
from classifier_lens.tasks.prompts.context_search import ContextSearch
from classifier_lens.tasks.units.npca import Components, class_components
from tests.tasks.tiny import (
    DISTANCE_WEIGHTS,
    NAMES,
    SIDE,
    Captions,
    Colours,
    Maker,
    Maps,
    OnGrass,
    Pictures,
    TaskCase,
    classifier_of,
    colour,
    mean_colors,
    noise,
    plain,
    preserved_reference,
    result_images,
    same_scene,
    world,
)

WEIGHTS = {"npca_contribution": 2.0, **DISTANCE_WEIGHTS}
TRAINING, DATA = noise(30, seed=1, digest="training"), noise(9)
NETWORK = classifier_of(Maps())


def settings() -> dict[str, Any]:
    return {
        "training": TRAINING,
        "components": {"viaduct": [1, 0], "0": [2]},
        "start_images": "own",
        "images_per_component": 2,
        "directions": ["max", "min"],
        "preserve": "foreground",
        "mask": None,
        "min_change_std": 1.0,
        "saturation_std": None,
        "prompt": "a photograph of {article} {label}",
        "weights": WEIGHTS,
        "prompt_to_prompt": {"cross_replace_steps": [0.3], "background_blend_steps": [0.3]},
        "captioner": Captions(),
        "cache": TensorCache(None),
        "context_search": ContextSearch(None, False, 2, "a photograph of {phrase}"),
        "baseline": "none",
    }


CASE = TaskCase(NpcaCf, settings, DATA, lambda: NETWORK)
task, pose = CASE.task, CASE.pose


def test_a_problem_per_component_picture_and_direction() -> None:
    found, total = pose(task())
    assert total == len(found) == len({p.name for p in found}) == 3 * 2 * 2
    assert [p.name for p in found[:5]] == [
        "x1-viaduct-1-max", "x1-viaduct-1-min", "x4-viaduct-1-max", "x4-viaduct-1-min", "x1-viaduct-0-max",
    ]  # fmt: skip
    assert [(p.label, p.component) for p in found[::4]] == [(1, 1), (1, 0), (0, 2)]
    for problem in found:
        label = NAMES[problem.label]
        (example,) = [e for e in DATA.examples if e.name == problem.image_name]
        assert example.label == label and problem.preserve == "foreground"
        assert problem.image is not None and torch.equal(problem.image, example.image)
        assert problem.edit.source == problem.edit.target == Captions().caption(example)
        own = class_components(NETWORK, label, TRAINING, SIDE, TensorCache(None))
        assert torch.equal(problem.components().vectors, own.vectors), "made of the training pictures"


@pytest.mark.parametrize("images", [1, 2, 3, 7])
def test_own_pictures_are_of_the_class_and_others_are_not(images: int) -> None:
    for start, rows in (("own", [1, 4, 7]), ("other", [0, 2, 3, 5, 6, 8])):
        found, _ = pose(
            task(components={"Viaduct": [0]}, start_images=start, images_per_component=images, directions=["max"])
        )
        assert [p.image_name for p in found] == [f"x{i}" for i in rows[:images]]
        assert {p.label for p in found} == {1}, "the component's class, whatever the picture's"
        for problem in found:
            (example,) = [e for e in DATA.examples if e.name == problem.image_name]
            assert problem.edit.source_words == example.label and problem.label_index == NAMES.index(example.label)


def test_by_default_classes_without_images_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a classifier with many classes some have images; which are named has to have them."""
    two, one = noise(9, labels=NAMES[:2]), noise(7, labels=[*NAMES[:2], "urn", *NAMES[:2], *NAMES[:2]])
    for training, data, start, kept in (
        (TRAINING, two, "own", [0, 1]), (one, DATA, "own", [0, 1]), (TRAINING, two, "generated", [0, 1, 2]),
    ):  # fmt: skip
        own = task(components=None, training=training, start_images=start, images_per_component=1, directions=["max"])
        found, total = own.problems(world(data, NETWORK))
        assert [p.label for p in found] == kept and total == len(kept)
        told = "2 of 3 classes have enough images; the others are skipped\n" if len(kept) == 2 else ""
        assert capsys.readouterr().out == told
    with pytest.raises(UserError, match="has no such image for 'urn'"):
        task(components={"urn": [0]}).problems(world(two, NETWORK))
    with pytest.raises(UserError, match="the data set has no such image for 'rock crab'"):
        task(components=None).problems(world(noise(3, labels=["boat"]), NETWORK))


def test_each_direction_starts_with_the_phrase_that_moves_it_most() -> None:
    """Pictures on sand are the reddest, pictures in snow the palest; the object's own words make the mask."""
    maker = Maker({"on sand": 0.8, "on grass": 0.4, "in snow": 0.1})
    context_search = ContextSearch([list(maker.reds)], False, 2, "a photograph of {phrase}")
    own = task(
        components={"rock crab": [0]}, images_per_component=1, captioner=OnGrass(), context_search=context_search
    )
    found, _ = own.problems(world(DATA, classifier_of(Colours(torch.eye(3).tolist())), generator=maker))
    for problem, phrase in zip(found, ["on sand", "in snow"], strict=True):
        example = DATA[DATA.indices("rock crab")[0]]
        caption = OnGrass().caption(example)
        assert problem.edit == CaptionEdit(caption, caption.replace("on grass", phrase), "on grass", phrase)
        assert problem.words_to_segment == example.label


def test_a_drawn_picture_gets_the_phrase_behind_its_class() -> None:
    maker = Maker({"on sand": 0.8, "in snow": 0.1, "a rock crab": 0.4})
    context_search = ContextSearch([["on sand", "in snow"]], True, 2, "a photograph of {phrase}")
    own = task(
        components={"rock crab": [0]}, start_images="generated", images_per_component=1, context_search=context_search
    )
    found, _ = own.problems(world(DATA, classifier_of(Colours(torch.eye(3).tolist())), generator=maker))
    for problem, phrase in zip(found, ["on sand", "in snow"], strict=True):
        drawn = "a photograph of a rock crab"
        assert problem.edit == CaptionEdit(drawn, f"{drawn} {phrase}", "rock crab", f"rock crab {phrase}")
        assert problem.editable_from_noise and problem.words_to_segment == "rock crab" and problem.image is None


def test_drawn_pictures_differ_in_their_seed_and_show_the_class() -> None:
    found, total = pose(task(components={"urn": [0, 1]}, start_images="generated", images_per_component=3))
    assert total == len({p.name for p in found}) == 2 * 3 * 2
    for problem in found:
        assert problem.image is None and problem.preserve == "foreground" and problem.edit.source_words == "urn"
        assert problem.edit.source == problem.edit.target == "a photograph of an urn"
    seeds = {p.image_name: {q.seed for q in found if q.image_name == p.image_name} for p in found}
    assert list(seeds) == ["generated-0", "generated-1", "generated-2"]
    assert all(len(own) == 1 for own in seeds.values()) and len(set.union(*seeds.values())) == 3


def test_all_questions_about_a_picture_have_its_seed() -> None:
    found, _ = pose(task())
    seeds = {p.image_name: {q.seed for q in found if q.image_name == p.image_name} for p in found}
    assert all(len(own) == 1 for own in seeds.values()) and len(set.union(*seeds.values())) == len(seeds) == 4
    assert not {p.seed for p in found} & {p.seed for p in pose(task(), seed=1)[0]}


@pytest.mark.parametrize("limit", [1, 5, 12, 99])
def test_a_limit_takes_the_first_and_counts_all(limit: int) -> None:
    everything, _ = pose(task())
    some, total = pose(task(), limit)
    assert total == 12 and [p.name for p in some] == [p.name for p in everything[:limit]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"components": {"viaduct": [4]}}, "task.components={viaduct: [4]}: allowed are 0 … 3"),
        ({"components": {"heron": [0]}}, "task.components=heron: no class of the classifier"),
        ({"components": "nowhere.json"}, "task.components=nowhere.json: No such file"),
        (
            {"training": noise(3)},
            "task.components: the training data have 1 images of 'viaduct'; at least 2 are needed",
        ),
        ({"start_images": "drawn"}, "task.start_images=drawn: allowed are own, other, generated"),
        ({"directions": ["up"]}, "task.directions=up: allowed are max, min"),
        ({"start_images": "generated", "prompt": "{klass}"}, "allowed fields are {article} and {label}"),
    ],
)
def test_other_settings_are_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        pose(task(**changes))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("start", "label"), [("own", "viaduct"), ("other", "urn")])
def test_a_data_set_without_such_a_picture_is_refused_in_one_line(start: str, label: str) -> None:
    urns = Pictures([colour(0, 0, 0)] * 2, ["urn", "urn"])
    own = task(start_images=start, components={label: [0]})
    with pytest.raises(UserError, match=rf"task\.start_images={start}: the data set has no such image for '{label}'"):
        own.problems(world(urns, NETWORK))


def test_a_mask_of_another_size_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.zeros((SIDE + 2, SIDE), np.uint8)).save(path)
    with pytest.raises(UserError, match=rf"task\.mask={path}: 8 x 10 pixels; expected a gray PNG of 8 x 8 pixels"):
        pose(task(mask=str(path)))


def test_a_classifier_without_a_last_layer_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"task\.components: the classifier has no known last linear layer") as caught:
        task().problems(world(DATA, classifier_of(plain)))
    assert "\n" not in str(caught.value)


# --- what is optimised and measured --------------------------------------------------------------------------

# Features (r, g, b), w = (2, 1, 1), mean 0: ψ = (2 r, g, b). v_0 sums to 1.4 and has a variance of 0.04, v_1 to −0.2.
BY_HAND = Components(
    torch.tensor([2.0, 1.0, 1.0]), torch.zeros(3), torch.tensor([[0.6, 0.8, 0.0], [0.6, -0.8, 0.0], [0.0, 0.0, 1.0]]),
    torch.tensor([0.04, 0.01, 0.0]),
)  # fmt: skip


def shift(direction: str, component: int = 0) -> ComponentCounterfactualProblem:
    (first, *_), _ = pose(task(directions=[direction]))
    return replace(first, components=lambda: BY_HAND, component=component)


def test_the_objective_raises_or_lowers_and_keeps_the_rest() -> None:
    """At red 0.5 and green 1, α_0 = 1.4 · 1.4 and α_1 = −0.2 · −0.2."""
    asked = [shift("max"), shift("min"), shift("max", 1), shift("min", 1)]
    reference = preserved_reference(torch.stack([colour(0.5, 1, 0)] * 4))
    objective = task().objective(asked, reference, mean_colors())
    assert {name: weight for name, (weight, _) in objective.items()} == WEIGHTS
    found = objective["npca_contribution"][1](same_scene(reference)).tolist()
    assert found == pytest.approx([-1.96, 1.96, -0.04, 0.04]), "lower is better"
    for name in ("latent_distance", "pixel_distance"):
        assert objective[name][1](same_scene(reference)).tolist() == [0] * 4


def test_what_is_beyond_enough_counts_no_more() -> None:
    """α_0 was 1.4 · 0.6 and deviates by 1.4 · 0.2: at 1.4 · 1.4 it has gone too far upwards, and not come downwards."""
    reference = preserved_reference(torch.stack([colour(0.5, 0, 0)] * 2))
    objective = task(saturation_std=2.0).objective([shift("max"), shift("min")], reference, mean_colors())
    _, term = objective["npca_contribution"]
    found = term(same_scene(preserved_reference(torch.stack([colour(0.5, 1, 0)] * 2)))).tolist()
    assert found == pytest.approx([-1.4 * (0.6 + 2 * 0.2), 1.96])


def test_what_is_measured_by_hand() -> None:
    pictures = result_images(colour(0.5, 0, 0), colour(0.5, 1, 0), colour(0.5, 0.5, 0))
    found = task().measure(shift("max"), pictures, mean_colors())
    before, start, after = torch.tensor([[0.5, g, 0.0] for g in (0.0, 0.5, 1.0)]).softmax(dim=1).tolist()
    assert found == {
        "success": True, "source": "viaduct", "target": "viaduct 0 max", "component": 0, "direction": "max",
        "criterion": "0.84 to 1.96 (required: +1 standard deviations over the training images, 0.28 each)",
        "contribution_before": pytest.approx(1.4 * 0.6), "contribution_start": pytest.approx(1.4 * 1.0),
        "contribution_after": pytest.approx(1.4 * 1.4), "training_std": pytest.approx(1.4 * 0.2),
        "predicted_before": "rock crab", "predicted_start": "rock crab", "predicted_after": "viaduct",
        "confidence_before": pytest.approx(dict(zip(NAMES[:2], before, strict=False))),
        "confidence_start": pytest.approx(dict(zip(NAMES[:2], start, strict=False))),
        "confidence_after": pytest.approx(dict(zip(NAMES[:2], after, strict=False))),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("direction", "min_change_std", "change", "success"),
    [("max", 1.0, 0.99, False), ("max", 1.0, 1.01, True), ("max", 2.0, 1.9, False), ("max", 2.0, 2.1, True),
     ("min", 1.0, -0.99, False), ("min", 1.0, -1.01, True), ("min", 1.0, 1.5, False), ("max", 1.0, -1.5, False)],
)  # fmt: skip
def test_a_success_is_a_change_the_right_way_in_standard_deviations(
    direction: str, min_change_std: float, change: float, success: bool
) -> None:
    """α_0 = 1.4 · (1.2 r + 0.8 g) has a standard deviation of 1.4 · 0.2: one is 0.25 of green."""
    pictures = result_images(colour(0, 0.5, 0), colour(0, 0.5 + 0.25 * change, 0), colour(0, 1, 0))
    assert task(min_change_std=min_change_std).measure(shift(direction), pictures, mean_colors())["success"] is success


def test_the_standard_deviation_is_that_of_the_classs_training_pictures() -> None:
    found, _ = pose(task())
    images = torch.stack([TRAINING[i].image for i in TRAINING.indices("viaduct")])
    problem = found[0]
    alpha = problem.components().contributions(NETWORK(images).features.double())[:, problem.component]
    pictures = result_images(images[0], images[1])
    measured = task().measure(problem, pictures, NETWORK)
    assert measured["training_std"] == pytest.approx(alpha.std().item(), rel=1e-4)
    assert [measured["contribution_before"], measured["contribution_after"]] == pytest.approx(
        alpha[:2].tolist(), rel=1e-4
    )


def test_nothing_further_is_shown() -> None:
    assert task().illustrate(shift("max"), result_images(colour(0, 0, 0)), mean_colors()) == {}


def test_a_summary_counts_each_direction() -> None:
    records = [{"direction": d, "success": s} for d, s in (("max", True), ("min", False), ("max", False))]
    assert task().summarize(records) == {
        "max": {"results": 2, "successes": 1}, "min": {"results": 1, "successes": 0},
    }  # fmt: skip
