"""Neuron counterfactuals: which problems are posed, which way units are moved, and what is measured, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.result_schema import ResultImages
from classifier_lens.runner.types import CaptionEdit, Scene, UserError
from classifier_lens.tasks.neuron_cf import ATTACKED, NeuronCf, UnitCounterfactualProblem
from classifier_lens.tasks.prompts.context_search import ContextSearch
from classifier_lens.tasks.units.addressing import FEATURES, Unit, activation
from classifier_lens.tasks.units.feature_attack import FeatureAttack
from classifier_lens.tasks.units.hirescam import CAM_AFTER, CAM_BEFORE, HiResCam, hirescam
from tests.tasks.tiny import (
    DISTANCE_WEIGHTS,
    NAMES,
    SIDE,
    Captions,
    Maker,
    Maps,
    OnGrass,
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

WEIGHTS = {"unit_activation": 2.0, **DISTANCE_WEIGHTS}
TRAINING = Pictures([colour(red, 0.5, 0) for red in (0.2, 0.6, 0.2, 0.6)], ["urn"] * 4, "halves")  # red: 0.4 ± 0.2
DATA = noise(6)


def settings() -> dict[str, Any]:
    return {
        "training": TRAINING,
        "units": [0, "head.in:1"],
        "label": None,
        "directions": ["max", "min"],
        "preserve": "foreground",
        "mask": None,
        "min_change_std": 1.0,
        "saturation_std": None,
        "feature_attack": FeatureAttack(1.0, 0.2, 5),
        "weights": WEIGHTS,
        "prompt_to_prompt": {"cross_replace_steps": [0.3], "background_blend_steps": [0.3]},
        "captioner": Captions(),
        "cache": TensorCache(None),
        "context_search": ContextSearch(None, False, 2, "a photograph of {phrase}"),
        "baseline": "none",
        "cam": HiResCam(None),
    }


CASE = TaskCase(NeuronCf, settings, DATA, mean_colors)
task, pose = CASE.task, CASE.pose


def test_a_problem_per_picture_unit_and_direction() -> None:
    found, total = pose(task())
    assert total == len(found) == len({p.name for p in found}) == 6 * 2 * 2
    assert [p.name for p in found[:4]] == [
        "x0-features-0-max",
        "x0-features-0-min",
        "x0-head-in-1-max",
        "x0-head-in-1-min",
    ]
    for i, problem in enumerate(found):
        example = DATA[i // 4]
        assert problem.image is not None and torch.equal(problem.image, example.image)
        assert problem.image_name == example.name and NAMES[problem.label] == example.label
        assert problem.edit.source == problem.edit.target == Captions().caption(example)
        assert problem.edit.source_words == example.label and problem.preserve == "foreground" and problem.mask is None
        assert problem.unit == (Unit(FEATURES, 0), Unit("head.in", 1))[i // 2 % 2]
        assert problem.std == pytest.approx((0.2, 0.0)[i // 2 % 2], abs=1e-6)


def test_each_direction_starts_with_the_phrase_that_moves_it_most() -> None:
    """Pictures on sand are the reddest, pictures in snow the palest; the object's own words make the mask."""
    maker = Maker({"on sand": 0.8, "on grass": 0.4, "in snow": 0.1})
    context_search = ContextSearch([list(maker.reds)], False, 2, "a photograph of {phrase}")
    own = task(units=[0], captioner=OnGrass(), context_search=context_search)
    found, _ = own.problems(world(DATA, mean_colors(), 2, generator=maker))
    for problem, phrase in zip(found, ["on sand", "in snow"], strict=True):
        caption = OnGrass().caption(DATA[0])
        assert problem.edit == CaptionEdit(caption, caption.replace("on grass", phrase), "on grass", phrase)
        assert problem.words_to_segment == DATA[0].label


def test_a_unit_that_never_changes_has_no_success() -> None:
    """In standard deviations of 0 every change would be one."""
    grey = Pictures([colour(0.5, i / 4, 0) for i in range(4)], ["urn"] * 4)
    own = task(training=grey, units=[0], preserve="none")
    problem = pose(own)[0][0]
    pictures = seen(colour(0.2, 0, 0), colour(0.9, 0, 0), colour(0.9, 0, 0))
    assert problem.std == 0 and not own.measure(problem, pictures, mean_colors())["success"]


def test_all_questions_about_a_picture_have_its_seed() -> None:
    found, _ = pose(task())
    seeds = {p.image_name: {q.seed for q in found if q.image_name == p.image_name} for p in found}
    assert all(len(own) == 1 for own in seeds.values()) and len(set.union(*seeds.values())) == 6
    assert not {p.seed for p in found} & {p.seed for p in pose(task(), seed=1)[0]}


@pytest.mark.parametrize("limit", [1, 7, 24, 99])
def test_a_limit_takes_the_first_and_counts_all(limit: int) -> None:
    everything, _ = pose(task())
    some, total = pose(task(), limit)
    assert total == 24 and [p.name for p in some] == [p.name for p in everything[:limit]]


def test_the_pictures_of_one_class_whatever_its_letters() -> None:
    found, total = pose(task(label="URN", units=[0], directions=["max"]))
    assert total == 2 and [p.image_name for p in found] == ["x2", "x5"]


def test_units_are_chosen_on_the_training_pictures() -> None:
    """Only red differs among them."""
    found, _ = pose(task(units="top:1", label="urn"))
    assert {p.unit for p in found} == {Unit(FEATURES, 0)}


def test_a_mask_from_a_file(tmp_path: Path) -> None:
    path, pixels = tmp_path / "mask.png", np.zeros((SIDE, SIDE), np.uint8)
    pixels[:, :3] = 255
    Image.fromarray(pixels).save(path)
    (problem, *_), _ = pose(task(mask=str(path)))
    expected = torch.zeros(1, SIDE, SIDE)
    expected[..., :3] = 1
    assert problem.mask is not None and torch.equal(problem.mask, expected)


def test_a_mask_of_another_size_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.zeros((SIDE, SIDE + 1), np.uint8)).save(path)
    with pytest.raises(
        UserError, match=rf"task\.mask={path}: 9 x 8 pixels; expected a gray PNG of 8 x 8 pixels"
    ) as caught:
        pose(task(mask=str(path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"units": [1, 3]}, "task.units=features:3: allowed are features:0 … features:2"),
        ({"units": ["maps:0"]}, "no module maps"),
        ({"label": "heron"}, "task.label=heron: the data set has no such image; it has rock crab, viaduct, urn"),
        ({"directions": ["up"]}, "task.directions=up: allowed are max, min"),
        ({"mask": "nowhere.png"}, "task.mask=nowhere.png: no such file"),
    ],
)
def test_other_settings_are_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        pose(task(**changes))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_class_that_the_classifier_does_not_know_is_refused() -> None:
    data = Pictures([colour(0, 0, 0)], ["heron"])
    with pytest.raises(UserError, match=r"data\.label=heron: no class of the classifier"):
        task().problems(world(data, mean_colors()))


# --- what is optimised and measured --------------------------------------------------------------------------


def push(direction: str, unit: Unit = Unit(FEATURES, 0), preserve: str = "foreground") -> UnitCounterfactualProblem:  # noqa: B008
    (first, *_), _ = pose(task(directions=[direction]))
    return replace(first, unit=unit, preserve=preserve)


def test_the_objective_raises_or_lowers_and_keeps_the_rest() -> None:
    image = colour(0.8, 0.1, 0)
    reference = preserved_reference(torch.stack([image, image]))
    objective = task().objective([push("max"), push("min")], reference, mean_colors())
    assert {name: weight for name, (weight, _) in objective.items()} == WEIGHTS
    assert objective["unit_activation"][1](same_scene(reference)).tolist() == pytest.approx([-0.8, 0.8]), (
        "lower is better"
    )
    for name in ("latent_distance", "pixel_distance"):
        assert objective[name][1](same_scene(reference)).tolist() == [0, 0]
    moved = Scene(reference.original + 0.1, reference.original_latent, reference.original[:, None] + 0.1)
    assert objective["pixel_distance"][1](moved).tolist() == pytest.approx([0.01, 0.01])


def scene_of(images: Tensor) -> Scene:
    return Scene(images, images[:, :, :2, :2], images[:, None])


def test_what_is_beyond_enough_counts_no_more() -> None:
    """Red was 0.4, its deviation is 0.2: 0.6 is enough upwards, 0.2 downwards."""
    reference = preserved_reference(torch.stack([colour(0.4, 0, 0)] * 2))
    objective = task(saturation_std=1.0).objective([push("max"), push("min")], reference, mean_colors())
    _, term = objective["unit_activation"]
    for red, expected in ((0.5, [-0.5, 0.5]), (0.7, [-0.6, 0.7]), (0.1, [-0.1, 0.2])):
        images = torch.stack([colour(red, 0, 0)] * 2).requires_grad_()
        found = term(scene_of(images))
        assert found.tolist() == pytest.approx(expected)
        (slope,) = torch.autograd.grad(found.sum(), images)
        moving = [-red == pytest.approx(expected[0]), red == pytest.approx(expected[1])]
        assert [bool(g.any()) for g in slope] == moving


def seen(before: Tensor, result: Tensor, attack: Tensor, mask: Tensor | None = None) -> ResultImages:
    return ResultImages(before, before.flip(0), result, mask, (), {ATTACKED: attack})


def test_what_is_measured_by_hand() -> None:
    pictures = seen(colour(0.2, 0.6, 0), colour(0.7, 0.6, 0), colour(0.9, 0.6, 0), torch.ones(1, SIDE, SIDE))
    found = task().measure(push("max"), pictures, mean_colors())
    colours = torch.tensor([[0.2, 0.6, 0.0], [0.0, 0.6, 0.2], [0.7, 0.6, 0.0], [0.9, 0.6, 0.0]])
    before, start, after, attacked = colours.softmax(dim=1).tolist()
    assert found == {
        "success": True, "source": "rock crab", "target": "features:0 max", "unit": "features:0", "direction": "max",
        "criterion": "0.2 to 0.7 (required: +1 standard deviations over the training images, 0.2 each)",
        "activation_before": pytest.approx(0.2), "activation_start": pytest.approx(0.0),
        "activation_after": pytest.approx(0.7),
        "activation_attack": pytest.approx(0.9), "training_std": pytest.approx(0.2),
        "predicted_before": "viaduct", "predicted_start": "viaduct", "predicted_after": "rock crab",
        "confidence_attack": pytest.approx(attacked[0]),
        "confidence_before": pytest.approx(dict(zip(NAMES[:2], before, strict=False))),
        "confidence_start": pytest.approx(dict(zip(NAMES[:2], start, strict=False))),
        "confidence_after": pytest.approx(dict(zip(NAMES[:2], after, strict=False))),
    }  # fmt: skip  # this network has no map: nothing is said about where the unit looks


@pytest.mark.parametrize(
    ("direction", "min_change_std", "red", "success"),
    [("max", 1.0, 0.69, False), ("max", 1.0, 0.71, True), ("max", 2.0, 0.89, False), ("max", 2.0, 0.91, True),
     ("max", 1.0, 0.2, False), ("min", 1.0, 0.31, False), ("min", 1.0, 0.29, True), ("min", 1.0, 0.9, False)],
)  # fmt: skip
def test_a_success_is_a_change_the_right_way_in_standard_deviations(
    direction: str, min_change_std: float, red: float, success: bool
) -> None:
    """From red 0.5, with a standard deviation of 0.2."""
    pictures = seen(colour(0.5, 0, 0), colour(red, 0, 0), colour(0, 0, 0), torch.ones(1, SIDE, SIDE))
    assert task(min_change_std=min_change_std).measure(push(direction), pictures, mean_colors())["success"] is success


@pytest.fixture
def shown() -> ResultImages:
    """Random pictures; the left quarter is free to change."""
    draw = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    free = torch.zeros(1, SIDE, SIDE)
    free[..., : SIDE // 4] = 1
    return seen(draw[0], draw[1], draw[2], free)


def test_the_share_outside_the_object_is_what_a_kept_foreground_leaves_free(shown: ResultImages) -> None:
    classifier, unit = classifier_of(Maps()), Unit(FEATURES, 1)
    found = task().measure(push("max", unit), shown, classifier)
    shares = (found["cam_share_outside_before"], found["cam_share_outside_after"])
    for share, image in zip(shares, (shown.before, shown.result), strict=True):
        cam = hirescam(classifier, image, unit)
        assert cam is not None and 0.01 < share < 0.99
        assert share == pytest.approx(cam[:, : SIDE // 4].sum().item(), abs=1e-6)
    # Where the background is kept, the object is what is free.
    turned = task().measure(push("max", unit, "background"), shown, classifier)
    assert turned["cam_share_outside_after"] == pytest.approx(1 - shares[1], abs=1e-5)


@pytest.mark.parametrize("preserve", ["all", "none"])
def test_where_no_object_was_looked_for_there_is_no_share(preserve: str, shown: ResultImages) -> None:
    """There is no mask then."""
    unmasked = replace(shown, mask=None)
    found = task().measure(push("max", Unit(FEATURES, 1), preserve), unmasked, classifier_of(Maps()))
    assert not [key for key in found if key.startswith("cam")]


@pytest.mark.parametrize(("direction", "sign"), [("max", 1), ("min", -1)])
def test_the_attack_and_the_maps_are_shown(direction: str, sign: int, shown: ResultImages) -> None:
    classifier, unit = classifier_of(Maps()), Unit(FEATURES, 1)
    found = task().illustrate(push(direction, unit), shown, classifier)
    assert list(found) == [ATTACKED, CAM_BEFORE, CAM_AFTER]
    before, attacked = activation(classifier, torch.stack([shown.before, found[ATTACKED]]), unit).tolist()
    assert sign * (attacked - before) > 1e-4 and (found[ATTACKED] - shown.before).norm() <= 1 + 1e-5
    for field, image in ((CAM_BEFORE, shown.before), (CAM_AFTER, shown.result)):
        assert found[field].shape == (1, SIDE, SIDE) and found[field].max() == 1 and found[field].min() >= 0
        cam = hirescam(classifier, image, unit)
        assert cam is not None
        torch.testing.assert_close(found[field][0], cam / cam.max())
    assert list(task().illustrate(push(direction), shown, mean_colors())) == [ATTACKED], "a network without a map"


def test_a_unit_before_the_last_map_can_be_asked_for(shown: ResultImages) -> None:
    classifier, problem = classifier_of(Maps()), push("min", Unit("early", 2))
    pictures = replace(shown, task_images=task().illustrate(problem, shown, classifier))
    found = task().measure(problem, pictures, classifier)
    expected = activation(classifier, torch.stack([shown.before, shown.result]), Unit("early", 2)).tolist()
    assert [found["activation_before"], found["activation_after"]] == pytest.approx(expected)
    assert 0 <= found["cam_share_outside_before"] <= 1


def test_a_summary_counts_each_direction() -> None:
    records = [{"direction": d, "success": s} for d, s in (("max", True), ("min", False), ("max", False))]
    assert task().summarize(records) == {
        "max": {"results": 2, "successes": 1}, "min": {"results": 1, "successes": 0},
    }  # fmt: skip


def test_its_schedules_replace_the_generators() -> None:
    assert task(prompt_to_prompt={"cross_replace_steps": [0.2], "background_blend_steps": [0.0]}).prompt_to_prompt == {
        "cross_replace_steps": [0.2],
        "background_blend_steps": [0.0],
    }


def test_another_layers_map_may_tell_where_units_look() -> None:
    """And one that is not there, or has no places, is refused before anything is computed."""
    classifier, unit = classifier_of(Maps(seed=3)), Unit(FEATURES, 1)
    before, result = (torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(i)) for i in range(2))
    shown = result_images(before, result)
    early, late = HiResCam("early"), HiResCam(None)
    wanted = hirescam(classifier, shown.result, unit, "early")
    assert wanted is not None
    torch.testing.assert_close(early.heatmaps(classifier, shown, unit)[CAM_AFTER][0], wanted / wanted.max())
    assert not torch.allclose(
        early.heatmaps(classifier, shown, unit)[CAM_AFTER], late.heatmaps(classifier, shown, unit)[CAM_AFTER]
    )
    with pytest.raises(UserError, match=r"no module earl; nearest are early"):
        HiResCam("earl").check(classifier)
    with pytest.raises(UserError, match=r"^task\.cam\.layer=head: its output is no map"):
        HiResCam("head").check(classifier)
