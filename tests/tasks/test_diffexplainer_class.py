"""The portrait of a class: which questions, the plain prompts beside them, and what is measured, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.diffexplainer_class import OBJECTIVES, DiffExplainerClass
from classifier_lens.tasks.problems.problem_names import problem_seed
from classifier_lens.tasks.units.addressing import FEATURES, Unit
from tests.tasks.tiny import (
    Captions,
    Maker,
    Pictures,
    TaskCase,
    colour,
    mean_colors,
    noise,
    preserved_reference,
    result_images,
    same_scene,
    world,
)

# Reds of the training pictures; the reddest one says so in its caption, the greenest has none.
TRAINING = Pictures([colour(0.2, 0.9, 0), colour(0.9, 0.1, 0), colour(0.5, 0.5, 0)], ["fern", "urn", "urn"], "three")
REDS = {"urn": 0.9, "fern": 0.1, "brick": 0.8, "rock crab": 0.5, "viaduct": 0.4}


def settings() -> dict[str, Any]:
    return {
        "training": TRAINING, "objective": "class", "classes": None, "feature_rank": 1, "prompt": "a picture of *2",
        "num_seeds": 2, "images_per_prompt": 4, "class_name_prompt": "a photograph of {article} {label}",
        "weights": {"class_log_prob": 1.0, "unit_activation": 0.5}, "captioner": Captions(),
        "cache": TensorCache(None), "baseline": "none",
    }  # fmt: skip


CASE = TaskCase(DiffExplainerClass, settings, noise(2), mean_colors, lambda: Maker(REDS))
task, pose = CASE.task, CASE.pose


def test_one_problem_per_class_and_restart() -> None:
    found, total = pose(task(classes=["viaduct", "Rock Crab"]))
    assert total == 4 and [p.name for p in found] == ["viaduct-0", "viaduct-1", "rock-crab-0", "rock-crab-1"]
    assert [p.target for p in found] == [1, 1, 0, 0] and all(p.image is None and p.preserve == "none" for p in found)
    assert [p.seed for p in found] == [problem_seed(0, c, k) for c in (1, 0) for k in (0, 1)], (
        "the same whatever is asked"
    )
    assert [p.init_seed for p in found] == [problem_seed(0, 0, k) for _ in (1, 0) for k in (0, 1)], (
        "restarts have prompts of their own"
    )
    assert {p.edit.source for p in found} == {"a picture of *2"} and len(pose(task(), limit=2)[0]) == 2
    (first, *_), total = pose(task(prompt="{article} *{label}"))
    assert first.edit.source == "a *rock_crab" and total == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "classes"}, "task.objective=classes: allowed are class, unit, both"),
        ({"classes": ["vase"]}, "task.classes=vase: no class"),
        ({"objective": "unit", "feature_rank": 4}, r"class:rock crab:4: allowed are 1 … 3 units"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pose(task(**changes))


def test_the_plain_prompts_are_the_name_and_the_surest_pictures_caption() -> None:
    """Picture x1 is the reddest: its own caption where there is one, else the captioner's. A prompt's four pictures
    differ by a tenth of red for every further seed."""
    training = Pictures([e.image for e in TRAINING.examples], ["fern", "urn", "urn"], "captioned")
    training.examples[1] = replace(training.examples[1], caption="an old brick")
    for given, caption in ((training, "an old brick"), (TRAINING, "a photograph of an urn")):
        (problem, *_), _ = pose(
            task(training=given, class_name_prompt="{article} {label} and a fern", classes=["rock crab"])
        )
        assert {name: r.prompt for name, r in problem.baseline_prompts.items()} == {
            "class_name": "a rock crab and a fern", "caption": caption,
        }  # fmt: skip
        for rival in problem.baseline_prompts.values():
            assert rival.score.count == 4 and rival.score.value == 1.0, "all of them are red"
        assert (
            problem.baseline_prompts["class_name"].score.mean_confidence
            < problem.baseline_prompts["caption"].score.mean_confidence
        )


def test_the_prompts_of_a_class_are_tried_once() -> None:
    maker = Maker(REDS)
    task(class_name_prompt="{label} urn", classes=["viaduct"], num_seeds=5).problems(
        world(noise(2), mean_colors(), None, maker)
    )
    assert len(maker.asked) == 2 * 4


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_the_objective_is_the_sum_of_its_terms_before_their_weights(objective: str) -> None:
    own = task(objective=objective, class_name_prompt="{label} urn")
    problems, _ = pose(own, limit=3)
    images = torch.stack([colour(0.3, 0.6, 0.1), colour(0.9, 0.2, 0.2), colour(0.1, 0.1, 0.8)])
    reference = preserved_reference(images)
    found = own.objective(problems, reference, mean_colors())
    assert {name: weight for name, (weight, _) in found.items()} == {
        name: own.weights[name] for name in OBJECTIVES[objective]
    }
    means = images.mean(dim=(2, 3))
    targets = [p.target for p in problems]
    assert targets == [0, 0, 1]
    wanted = {
        "class_log_prob": -means.log_softmax(dim=1)[range(3), targets], "unit_activation": -means[range(3), targets],
    }  # fmt: skip
    for name, (_, term) in found.items():
        torch.testing.assert_close(term(same_scene(reference)), wanted[name])
    units = [None if objective == "class" else Unit(FEATURES, t) for t in targets]
    assert [p.unit for p in problems] == units


def test_what_is_measured_by_hand() -> None:
    """Three of four pictures are red; the class's name had all four, and its caption, say, two."""
    own = task(objective="both", class_name_prompt="{label} urn", classes=["rock crab"])
    (problem, *_), _ = pose(own)
    two = replace(problem.baseline_prompts["caption"], score=replace(problem.baseline_prompts["caption"].score, hits=2))
    problem = replace(problem, baseline_prompts={**problem.baseline_prompts, "caption": two})
    reds = [colour(0.9, 0.1, 0), colour(0.7, 0.1, 0), colour(0.5, 0.1, 0), colour(0.1, 0.9, 0)]
    pictures = result_images(reds[3], reds[0], samples=reds[1:])
    record = own.measure(problem, pictures, mean_colors())
    assert record["activation_score"] == 0.75 and record["num_images"] == 4 and record["target"] == "rock crab"
    low, high = record["activation_score_interval"]
    assert low == pytest.approx(0.3006, abs=1e-3) and high == pytest.approx(0.9544, abs=1e-3), "Wilson, 3 of 4"
    assert record["mean_confidence"] == pytest.approx(
        torch.stack(reds).mean(dim=(2, 3)).softmax(dim=1)[:, 0].mean().item()
    )
    assert record["activation"] == pytest.approx(0.55) and record["unit"] == "features:0"
    assert record["success"] is False
    assert [r["comparison"] for r in record["baseline_prompts"].values()] == ["falls short of", "beats"]
    again = own.measure(problem, replace(pictures, samples=[*reds[1:3], reds[0]]), mean_colors())
    assert again["success"] is True and again["baseline_prompts"]["class_name"]["comparison"] == "equals"


def test_of_a_class_the_restart_with_the_lowest_loss_counts() -> None:
    def record(name: str, target: str, loss: float, score: float) -> dict[str, Any]:
        prompts = {"class_name": {"activation_score": 0.5}, "caption": {"activation_score": 0.25}}
        return {
            "name": name, "target": target, "loss": {"total": loss}, "activation_score": score,
            "baseline_prompts": prompts, "success": score >= 0.5, "prompt": name.upper(),
        }  # fmt: skip

    found = task().summarize([record("a", "x", 2.0, 0.9), record("b", "x", 1.0, 0.7), record("c", "y", 3.0, 0.3)])
    assert found["results"] == 3 and found["successes"] == 2 and found["mean_activation_score"] == pytest.approx(0.5)
    assert found["x"] == {
        "best_restart": "b", "prompt": "B", "activation_score": 0.7, "restarts": 2, "min_activation_score": 0.7,
        "max_activation_score": 0.9, "class_name": 0.5, "caption": 0.25,
    }  # fmt: skip
    assert task().summarize([]) == {"results": 0, "successes": 0}
