"""Gradients of a class's probability: of networks whose gradients are known, and what is measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.result_schema import ResultImages
from classifier_lens.runner.types import Scene, UserError
from classifier_lens.tasks.analysis.cam_share import share_inside
from classifier_lens.tasks.analysis.class_gradient import gradient_image, input_gradient, no_augmentation
from classifier_lens.tasks.input_gradients import InputGradients, gradient_field
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem
from tests.tasks.tiny import (
    DISTANCE_WEIGHTS,
    NAMES,
    SIDE,
    Captions,
    Colours,
    Maps,
    Pictures,
    TaskCase,
    classifier_of,
    colour,
    noise,
    preserved_reference,
    result_images,
    same_scene,
)

DATA = noise(5)
MATRIX = [[2.0, -1.0, 0.5], [0.0, 1.0, 1.0], [-1.0, 0.0, 3.0]]
BIAS = [0.1, 0.2, -0.3]
CROPS = RandomCrops(crops=4, noise_std=0.0, power=0.3, min_crop_fraction=0.5, new_crops_per_prediction=False)
LEFT = (torch.arange(SIDE) < SIDE // 2).float().expand(1, SIDE, SIDE)


def linear() -> ImageClassifier:
    """Logits are MATRIX times the mean colours plus BIAS."""
    return classifier_of(Colours(MATRIX, BIAS))


def half(scene: Scene, seeds: Sequence[int], step: int, size: int) -> Scene:
    """The picture with its right half black, and the same at half the brightness: two views."""
    views = torch.stack([scene.image * LEFT, scene.image * LEFT / 2], dim=1)
    return replace(scene, views=views)


def settings() -> dict[str, Any]:
    return {
        "target": "viaduct", "preserve": "background", "mask": None, "augmentations": {"half": half, "crops": CROPS},
        "weights": DISTANCE_WEIGHTS, "captioner": Captions(),
    }  # fmt: skip


CASE = TaskCase(InputGradients, settings, DATA, linear)
task, pose = CASE.task, CASE.pose


def crab() -> CounterfactualProblem:
    return pose(task(), 1)[0][0]


# --- gradients -----------------------------------------------------------------------------------------------


def by_hand(image: Tensor, target: int) -> Tensor:
    """∂p_y/∂x_c,i = p_y (W_y,c − Σ_k p_k W_k,c) / pixels, the same at every place."""
    weight = torch.tensor(MATRIX)
    p = (weight @ image.mean(dim=(1, 2)) + torch.tensor(BIAS)).softmax(dim=0)
    slope: Tensor = p[target] * (weight[target] - p @ weight) / SIDE**2
    return slope[:, None, None].expand(3, SIDE, SIDE)


@pytest.mark.parametrize("target", range(3))
def test_a_linear_networks_gradient(target: int) -> None:
    image = DATA[0].image
    gradient, probability = input_gradient(linear(), image, target, no_augmentation, 0)
    torch.testing.assert_close(gradient, by_hand(image, target))
    expected = (torch.tensor(MATRIX) @ image.mean(dim=(1, 2)) + torch.tensor(BIAS)).softmax(dim=0)[target]
    assert probability == pytest.approx(expected.item()) and not gradient.requires_grad and not image.requires_grad


def test_the_probability_is_averaged_over_the_views() -> None:
    image = DATA[1].image
    gradient, probability = input_gradient(linear(), image, 1, half, 0)
    views = [image * LEFT, image * LEFT / 2]
    expected = LEFT * (by_hand(views[0], 1) + by_hand(views[1], 1) / 2) / 2
    torch.testing.assert_close(gradient, expected)
    alone = [input_gradient(linear(), view, 1, no_augmentation, 0)[1] for view in views]
    assert probability == pytest.approx(sum(alone) / 2)


def test_a_gradient_agrees_with_finite_differences() -> None:
    classifier, image = classifier_of(Maps()), DATA[2].image
    gradient, _ = input_gradient(classifier, image, 2, CROPS, 5)
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))

    def value(moved: Tensor) -> float:
        return input_gradient(classifier, moved, 2, CROPS, 5)[1]

    h = 1e-2
    numeric = (value(image + h * direction) - value(image - h * direction)) / (2 * h)
    assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-2)


def test_crops_are_those_of_the_seed() -> None:
    classifier, image = classifier_of(Maps()), DATA[0].image
    first, again, other = (input_gradient(classifier, image, 0, CROPS, seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_a_gradient_as_a_picture() -> None:
    gradient = torch.zeros(3, 2, 2)
    gradient[0, 0, 0], gradient[1, 1, 0] = 4e-9, -2e-9
    picture = gradient_image(gradient)
    assert picture[0, 0, 0] == 1 and picture[1, 1, 0] == 0.25 and picture.eq(0.5).sum() == 10
    assert gradient_image(-gradient)[0, 0, 0] == 0 and gradient_image(torch.zeros(3, 2, 2)).eq(0.5).all()


# --- what is asked -------------------------------------------------------------------------------------------


def test_a_problem_per_picture_of_which_no_word_changes() -> None:
    data = Pictures([e.image for e in DATA.examples if e.label != "viaduct"], ["rock crab", "urn", "rock crab"])
    found, total = pose(task(), dataset=data)
    assert total == len(found) == 3 and [p.name for p in found] == ["x0-viaduct", "x1-viaduct", "x2-viaduct"]
    for problem, example in zip(found, data.examples, strict=True):
        assert problem.edit.source == problem.edit.target == Captions().caption(example)
        assert (NAMES[problem.source], NAMES[problem.target]) == (example.label, "viaduct")
        assert problem.label_index == problem.source
        assert problem.prompt_check is None and problem.preserve == "background"
    assert len({p.seed for p in found} | {p.seed for p in pose(task(), seed=1, dataset=data)[0]}) == 6


def test_a_rule_chooses_the_target_and_all_are_counted() -> None:
    found, total = pose(task(target="all"), limit=3)
    assert [p.name for p in found] == ["x0-viaduct", "x0-urn", "x1-rock-crab"] and total == 10
    with pytest.raises(UserError, match=r"task\.target=rock crab: is the class of x0 already"):
        pose(task(target="rock crab"))


def test_the_picture_itself_is_no_augmentation() -> None:
    with pytest.raises(UserError, match=r"^task\.augmentations\.none: means the image without augmentation"):
        task(augmentations={"none": half})


def test_its_value_is_how_far_the_reconstruction_is() -> None:
    reference = preserved_reference(torch.stack([colour(0.5, 0, 0)]))
    objective = task().objective([crab()], reference, linear())
    assert {name: weight for name, (weight, _) in objective.items()} == DISTANCE_WEIGHTS
    assert [term(same_scene(reference)).item() for _, term in objective.values()] == [0, 0]


# --- what is shown and measured ------------------------------------------------------------------------------


def seen(mask: Tensor) -> ResultImages:
    return result_images(DATA[0].image, colour(0.2, 0.4, 0.6), mask=mask)


def test_a_picture_per_augmentation() -> None:
    found = task().illustrate(crab(), seen(LEFT), linear())
    assert [field.key for field in found] == ["gradient_none", "gradient_half", "gradient_crops"]
    slope = by_hand(DATA[0].image, 1)
    torch.testing.assert_close(found[gradient_field("none")], 0.5 + slope / slope.abs().max() / 2)
    assert found[gradient_field("half")][:, :, SIDE // 2 :].eq(0.5).all()
    assert not found[gradient_field("half")][:, :, : SIDE // 2].eq(0.5).any()


@pytest.mark.parametrize(("mask", "half_within"), [(LEFT, 1), (1 - LEFT, 0)])
@pytest.mark.parametrize("preserve", ["background", "foreground"])
def test_the_shares_of_gradients_on_the_object(mask: Tensor, half_within: float, preserve: str) -> None:
    """The plain gradient lies everywhere alike, that of the augmentation `half` on the left. Nothing can succeed."""
    problem = replace(crab(), preserve=preserve)
    found = task().measure(problem, seen(mask if preserve == "background" else 1 - mask), linear())
    assert "success" not in found and found["object_area"] == pytest.approx(0.5)
    assert found["share_on_object"]["none"] == pytest.approx(0.5) and found["share_on_object"]["half"] == pytest.approx(
        half_within
    )
    assert (found["source"], found["target"]) == ("rock crab", "viaduct")
    assert found["probability"]["none"] == pytest.approx(found["confidence_before"]["viaduct"])
    gradient, probability = input_gradient(linear(), DATA[0].image, 1, CROPS, crab().seed)
    assert found["probability"]["crops"] == pytest.approx(probability)
    expected = share_inside(gradient.abs().sum(dim=0), mask)
    assert found["share_on_object"]["crops"] == pytest.approx(expected)


def test_a_network_that_is_certain_has_no_gradient_and_no_share() -> None:
    certain = classifier_of(Colours([[1e4] * 3, [0.0] * 3, [0.0] * 3]))
    found = task().measure(crab(), seen(LEFT), certain)
    assert found["share_on_object"]["none"] == 0 and found["probability"]["none"] == 0
    assert task().illustrate(crab(), seen(LEFT), certain)[gradient_field("none")].eq(0.5).all()


def test_a_share_by_hand() -> None:
    values, region = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[[1.0, 0.5], [0.0, 0.25]]])
    assert share_inside(values, region) == pytest.approx((1 + 1 + 1) / 10)
    assert share_inside(torch.zeros(2, 2), region) == 0


def test_a_summary_has_mean_shares_and_none_of_nothing() -> None:
    records = [{"share_on_object": {"none": 0.25 + k / 2, "half": 1.0}, "object_area": 0.5} for k in (0, 1)]
    expected = {"results": 2, "share_on_object": {"none": 0.5, "half": 1.0}, "object_area": 0.5}
    assert task().summarize(records) == expected
    assert task().summarize([]) == {"results": 0, "share_on_object": {}}


def test_without_an_object_no_share_on_it_is_told() -> None:
    own = task(preserve="none")
    (problem,), _ = pose(own, 1)
    pictures = result_images(DATA[0].image)
    record = own.measure(problem, pictures, linear())
    assert (
        record["probability"].keys() == {"none", "half", "crops"}
        and not {"share_on_object", "object_area"} & record.keys()
    )
    assert own.summarize([record]) == {"results": 1}
