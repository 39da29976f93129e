"""The audit of features: which questions, what a segmenter's masks say, and what people's labels add, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from classifier_lens.data.salient_imagenet import AnnotatedFeature, FeatureAnnotations
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.result_schema import ResultImages
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.analysis.verdict import bootstrap_interval
from classifier_lens.tasks.problems.prompt_problems import OBJECTIVES
from classifier_lens.tasks.spurious_audit import (
    CLASS_REGION,
    TRAINING_CAM,
    TRAINING_IMAGE,
    SpuriousAudit,
)
from classifier_lens.tasks.units.addressing import FEATURES, Unit
from tests.tasks.tiny import (
    SIDE,
    Colours,
    Maker,
    Maps,
    Pictures,
    TaskCase,
    classifier_of,
    colour,
    noise,
    preserved_reference,
    result_images,
    same_scene,
    world,
)

# Class 0 reads red and half of green, class 1 green, class 2 blue.
WEIGHTS = [[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
TRAINING = Pictures([colour(0.9, 0.2, 0), colour(0.7, 0.4, 0), colour(0.1, 0.8, 0), colour(0, 0, 1)], ["urn"] * 4)
# Of class 0: green is spurious; of class 1: its only feature is core.
LABELS = FeatureAnnotations(
    {0: [AnnotatedFeature(0, 1, True), AnnotatedFeature(1, 2, False)], 1: [AnnotatedFeature(1, 1, True)]}, [[0, 1]]
)


class Bright:
    """What is brighter than a half in its first channel; keeps what it was asked."""

    digest = "bright"

    def __init__(self) -> None:
        self.words: list[str] = []

    def segment(self, images: Tensor, words: Sequence[str]) -> Tensor:
        self.words += words
        return (images[:, :1] > 0.5).float()


def settings() -> dict[str, Any]:
    return {
        "training": TRAINING, "classes": None, "features_per_class": 2, "annotations": None, "objectives": ["both"],
        "prompt": "a picture of *2", "segmenter": Bright(), "delta": 0.3, "calibration_runs": [],
        "activation_threshold": 0.5, "weights": {"class_log_prob": 1.0, "unit_activation": 0.5},
        "cache": TensorCache(None), "baseline": "none",
    }  # fmt: skip


CASE = TaskCase(SpuriousAudit, settings, noise(2), lambda: classifier_of(Colours(WEIGHTS)), lambda: Maker({}))
task, pose = CASE.task, CASE.pose


def test_the_features_of_a_class_are_ranked_by_their_mean_contribution() -> None:
    """Pictures 0 and 1 are called class 0, whose red contributes 0.8 and green 0.5 · 0.3."""
    found, total = pose(task(classes=["rock crab"], objectives=["both", "unit"]))
    assert total == 4 and [p.name for p in found] == [
        "rock-crab-1-features-0-both", "rock-crab-1-features-0-unit", "rock-crab-2-features-1-both",
        "rock-crab-2-features-1-unit",
    ]  # fmt: skip
    assert [p.unit for p in found] == [Unit(FEATURES, i) for i in (0, 0, 1, 1)]
    assert [p.class_mean for p in found[::2]] == pytest.approx([0.8, 0.3])
    assert [p.training_max for p in found[::2]] == pytest.approx([0.9, 0.8])
    assert found[0].seed == found[1].seed != found[2].seed, "objectives are compared from the same start"
    assert not any(isinstance(held, Tensor) for p in found for held in vars(p).values()), "no problem holds an image"
    shown = [found[i].load_top_example for i in (0, 2)]
    assert shown[0] is not None and shown[1] is not None
    assert torch.equal(shown[0](), TRAINING[0].image)
    assert torch.equal(shown[1](), TRAINING[1].image), "the greenest one that is called class 0"
    (everything, total), (some, _) = pose(task()), pose(task(), limit=3)
    assert total == len(everything) == 6 and [p.name for p in some] == [p.name for p in everything[:3]]
    assert {p.init_seed for p in everything} == {0}, "all are compared with the same random prompts"
    assert len({p.seed for p in everything}) == 6 and len({p.name for p in everything}) == 6


def test_classes_that_no_training_picture_is_predicted_as_are_left_out_unless_they_are_named() -> None:
    without = Pictures([TRAINING[i].image for i in range(3)], ["urn"] * 3, "without")
    assert {p.target for p in pose(task(training=without))[0]} == {0, 1}
    with pytest.raises(UserError, match="no training image is predicted as 'urn'"):
        pose(task(training=without, classes=["urn"]))


def test_where_people_said_something_their_features_are_audited() -> None:
    found, total = pose(task(annotations=LABELS, features_per_class=5))
    assert [(p.target, p.unit.index, p.rank) for p in found] == [(0, 0, 1), (0, 1, 2), (1, 1, 1)] and total == 3
    one, _ = pose(task(annotations=LABELS, classes="stratified:1"))
    assert {p.target for p in one} == {0, 1}, "the one class without, and the one with a spurious feature"
    assert [p.rank for p in pose(task(annotations=LABELS, features_per_class=1))[0]] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives": []}, r"task.objectives=\[\]: name at least one of class, unit, both"),
        ({"objectives": ["both", "all"]}, "task.objectives=all: allowed are class, unit, both"),
        ({"features_per_class": 4}, "allowed are 1 … 3 units"),
        ({"classes": ["vase"]}, "task.classes=vase: no class"),
        ({"classes": "stratified:2"}, "task.classes=stratified:2: allowed are names"),
        ({"classes": "all", "annotations": LABELS}, "task.classes=all: allowed are names"),
        ({"classes": ["urn"], "annotations": LABELS}, "task.classes=urn: has no annotations"),
        ({"annotations": FeatureAnnotations({7: []}, [])}, "task.annotations: the index 7 is beyond the class"),
        ({"calibration_runs": ["nowhere"]}, "task.calibration_runs=nowhere: holds no annotated features"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pose(task(**changes))


def test_each_problem_is_asked_for_its_own_terms() -> None:
    own = task(objectives=["both", "unit", "class"], classes=["viaduct"], features_per_class=1)
    problems, _ = pose(own)
    assert [p.objective for p in problems] == ["both", "unit", "class"]
    images = torch.stack([colour(0.3, 0.6, 0.1), colour(0.9, 0.2, 0.2), colour(0.1, 0.1, 0.8)])
    reference, classifier = preserved_reference(images), classifier_of(Colours(WEIGHTS))
    found = own.objective(problems, reference, classifier)
    greens, log_prob = images[:, 1, 0, 0], classifier(images).logits.log_softmax(dim=1)[:, 1]
    wanted = {"class_log_prob": -log_prob, "unit_activation": -greens}
    assert {name: weight for name, (weight, _) in found.items()} == own.weights
    for name, (_, term) in found.items():
        asked = torch.tensor([name in OBJECTIVES[p.objective] for p in problems])
        torch.testing.assert_close(term(same_scene(reference)), torch.where(asked, wanted[name], 0))


DIM = (0.45, 0.4, 0.0)  # does to both features more than half of what class 0 often does, and is not found


def test_a_feature_with_a_negative_weight_is_lowered() -> None:
    """Class 0 reads red and less green; red's mean in its pictures is 0.8, green's 0.3."""
    classifier = classifier_of(Colours([[1.0, -0.5, 0.0], *WEIGHTS[1:]]))
    own = task(annotations=LABELS)
    problems, _ = own.problems(world(noise(2), classifier, 2, Maker({})))
    assert [p.unit.index for p in problems] == [0, 1]
    images = torch.stack([colour(0.5, 0.2, 0.3)] * 2)
    reference = preserved_reference(images)
    term = own.objective(problems, reference, classifier)["unit_activation"][1]
    torch.testing.assert_close(term(same_scene(reference)), torch.tensor([-0.5, 0.2]))
    for green, reached in ((0.1, True), (0.44, True), (0.46, False)):
        found = own.measure(problems[1], pictures(0.0, 0.0, rest=(0.9, green, 0.0)), classifier)
        assert found["activated"] is reached, "0.3 and half of it more, at the most"


def pictures(*shares: float, rest: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> ResultImages:
    """Pictures whose given share is red and the rest of another colour, black if not said."""
    images = colour(*rest).expand(len(shares), -1, -1, -1).clone()
    for image, share in zip(images, shares, strict=True):
        image[:, : int(share * SIDE)] = colour(0.9, 0, 0)[:, : int(share * SIDE)]
    return result_images(images[0], samples=list(images[1:]))


def test_what_is_measured_by_hand() -> None:
    segmenter = Bright()
    own = task(annotations=LABELS, segmenter=segmenter)
    problems, _ = pose(own)
    classifier = classifier_of(Colours(WEIGHTS))
    record = own.measure(problems[0], pictures(0.5, 0.25, 0.75, 0.5), classifier)
    assert segmenter.words == ["rock crab"] * 4, "the class is looked for by its name"
    assert record["r_per_image"] == pytest.approx([0.5, 0.25, 0.75, 0.5]) and record["r"] == pytest.approx(0.5)
    assert record["r_interval"] == pytest.approx(list(bootstrap_interval(record["r_per_image"])))
    assert record["verdict"] == "core" and record["annotation"] == "core" and record["agrees_with_annotation"] is True
    assert "success" not in record, "no verdict is one"
    assert (
        record["group"] == "medium" and record["animate"] is True and record["classifier_digest"] == classifier.digest
    )
    assert record["activation"] == pytest.approx(0.9 * 0.5) and record["activation_score"] == 1.0
    for problem, given, verdict, agrees in (
        (problems[0], (0.0, 0.0, 0.0, 0.25), "spurious", False),
        (problems[1], (0.0, 0.0, 0.0, 0.25), "spurious", True),
        (problems[1], (0.0, 0.5, 0.0, 0.75), "undecided", None),
    ):
        found = own.measure(problem, pictures(*given, rest=DIM), classifier)
        assert (found["verdict"], found["agrees_with_annotation"], found["activated"]) == (verdict, agrees, True)
    unlabelled = task().measure(problems[0], pictures(0.0, 0.0, rest=DIM), classifier)
    assert (
        unlabelled["annotation"] is None and unlabelled["agrees_with_annotation"] is None and "group" not in unlabelled
    )


def test_pictures_that_do_not_excite_a_feature_say_nothing_of_it() -> None:
    """Red is 0.8 on average where class 0 is predicted: pictures of 0.36 are too few for 0.5 of it, not for 0.4."""
    (red, *_), _ = pose(task())
    classifier = classifier_of(Colours(WEIGHTS))
    for share, reached, verdict in ((0.5, False, "undecided"), (0.4, True, "core")):
        found = task(activation_threshold=share).measure(
            replace(red, delta=0.2), pictures(0.5, 0.25, 0.5, 0.25), classifier
        )
        assert found["activation"] < 0.4 and found["class_mean_activation"] == pytest.approx(0.8)
        assert (found["activated"], found["verdict"]) == (reached, verdict)


def test_the_page_shows_what_was_found_and_where_the_feature_looks() -> None:
    own, classifier = task(features_per_class=1, training=noise(6), classes=["viaduct"]), classifier_of(Maps())
    (problem, *_), _ = own.problems(world(noise(6), classifier, 1, Maker({})))
    problem = replace(problem, unit=Unit(FEATURES, 0))
    shown = own.illustrate(problem, pictures(0.5, 1.0), classifier)
    assert set(shown) == {CLASS_REGION, TRAINING_IMAGE, TRAINING_CAM}
    assert shown[CLASS_REGION].shape == (3, SIDE + 2, 2 * SIDE + 3) and shown[TRAINING_CAM].max() == 1
    inside, outside = shown[CLASS_REGION][:, 1, 1], shown[CLASS_REGION][:, SIDE, 1]
    assert inside[0] > inside[1] and outside[0] == outside[1] == outside[2], "grey where the class is not"


def test_the_summary_counts_the_first_objective_and_lists_all() -> None:
    own = task(annotations=LABELS, objectives=["both", "unit"])
    problems, _ = pose(own)
    classifier = classifier_of(Colours(WEIGHTS))
    records = [
        own.measure(p, pictures(*([0.5] * 2 if p.unit.index == 0 else [0] * 2), rest=DIM), classifier) for p in problems
    ]
    found = own.summarize(records)
    assert (found["results"], found["core"], found["spurious"], found["undecided"]) == (6, 1, 2, 0)
    assert [row["objective"] for row in found["features"]] == ["both", "unit"] * 3
    assert found["agreement"][0]["features"] == 3 and found["agreement"][0]["accuracy"] == pytest.approx(2 / 3)
    assert task().summarize([])["features"] == []


def test_problems_of_other_classes_do_not_change_a_question() -> None:
    alone, _ = pose(task(classes=["viaduct"]))
    among, _ = pose(task())
    same = [replace(p, load_top_example=alone[0].load_top_example) for p in among if p.target == 1]
    assert [p.seed for p in same] == [p.seed for p in alone] and [p.name for p in same] == [p.name for p in alone]
