"""Which problems the task poses, how prompts change, and what is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from data.planted import CLASSES, PlantedDataset
from models.caption import Template
from models.diffusion import LatentDiffusion
from runner.types import Example, Problem, UserError
from tasks.uvce import Uvce, replace_words
from tests.conftest import TinyClassifier

WEIGHTS = {"class_log_prob": 1.0, "latent_distance": 25.0, "pixel_distance": 250.0}
TEMPLATE = Template("a photograph of {article} {label}")


def uvce(**changes: Any) -> Uvce:
    settings: dict[str, Any] = {"target": "nearest", "baseline": "none", "weights": WEIGHTS, "captioner": TEMPLATE}
    return Uvce(**(settings | changes))


class One:
    """A data set of one picture."""

    def __init__(self, label: str, caption: str | None = None, side: int = 16) -> None:
        self.labels, self.example = (label,), Example("mine", torch.rand(3, side, side + 4), label, caption)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Example:
        return self.example

    def nearest(self, label: str) -> str | None:
        return None


def pose(task: Uvce, dataset: Any, seed: int = 0, limit: int | None = None) -> tuple[list[Problem], int]:
    return task.problems(dataset, TinyClassifier(), 16, seed, limit)


def test_one_problem_per_picture_in_the_data_sets_order() -> None:
    data = PlantedDataset("test", 8, 0)
    problems, total = pose(uvce(), data)
    assert total == 8 and [p.name for p in problems] == [
        f"{data[i].name}-{CLASSES[p.target].replace(' ', '-')}" for i, p in enumerate(problems)
    ]
    for i, problem in enumerate(problems):
        assert CLASSES[problem.source] == data[i].label and problem.image.shape == (3, 16, 16)
        assert data.nearest(data[i].label) == CLASSES[problem.target]
        assert problem.edit.source == data[i].caption
        assert problem.edit.source.replace(problem.edit.source_words, "X") == problem.edit.target.replace(
            problem.edit.target_words, "X"
        )
    assert len({p.seed for p in problems}) == 8


def test_a_limit_takes_the_first_and_still_counts_all() -> None:
    data = PlantedDataset("test", 8, 0)
    everything, total = pose(uvce(target="all"), data)
    some, same_total = pose(uvce(target="all"), data, limit=13)
    assert total == same_total == len(everything) == 8 * 9 and len(some) == 13
    assert [p.name for p in some] == [p.name for p in everything[:13]]
    assert len({p.name for p in everything}) == 72 and all(p.source != p.target for p in everything)


def test_seeds_draw_others() -> None:
    data = PlantedDataset("test", 4, 0)
    seeds = [{p.seed for p in pose(uvce(), data, seed)[0]} for seed in (0, 1)]
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize("rule", ["confusion", "random", "viaduct", "all"])
def test_a_label_may_be_written_in_any_case(rule: str) -> None:
    problems, _ = pose(uvce(target=rule), One("Rock Crab"))
    assert {CLASSES[p.source] for p in problems} == {"rock crab"}
    assert all(p.target != p.source for p in problems)
    assert problems[0].edit.target == f"a photograph of a {CLASSES[problems[0].target]}"


def test_bad_labels_and_targets_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.label=rock carb.*nearest are rock crab"):
        pose(uvce(target="viaduct"), One("rock carb"))
    with pytest.raises(UserError, match=r"task\.target=lifebat.*lifeboat"):
        pose(uvce(target="lifebat"), One("rock crab"))
    with pytest.raises(UserError, match="already"):
        pose(uvce(target="rock crab"), One("ROCK crab"))
    with pytest.raises(UserError, match=r"task\.target=nearest"):
        pose(uvce(target="nearest"), One("rock crab"))


def test_the_caption_says_what_changes() -> None:
    example = Example("x", torch.zeros(3, 16, 16), "rock crab")
    edit = replace_words("an image of a Rock Crab by a rock", example, "steel arch bridge")
    assert (edit.source, edit.target) == (
        "an image of a Rock Crab by a rock", "an image of a steel arch bridge by a rock",
    )  # fmt: skip
    assert (edit.source_words, edit.target_words) == ("rock crab", "steel arch bridge")
    part_of_a_word = replace_words("a rock crabs", example, "viaduct")
    assert part_of_a_word.target == "a rock crabs", "names are whole words"


@pytest.mark.parametrize(
    ("caption", "label", "target", "changed"),
    [
        ("a photograph of an airplane", "airplane", "deer", "a photograph of a deer"),
        ("a photograph of a deer", "deer", "airplane", "a photograph of an airplane"),
        ("an image of a red deer", "deer", "airplane", "an image of a red airplane"),
        ("two deer", "deer", "airplane", "two airplane"),
        ("banana deer", "deer", "airplane", "banana airplane"),
        ("a deer", "deer", "dog", "a dog"),
    ],
)
def test_an_article_right_before_the_name_follows_it(caption: str, label: str, target: str, changed: str) -> None:
    assert replace_words(caption, Example("x", torch.zeros(3, 16, 16), label), target).target == changed


def test_the_objective_has_the_three_weighted_terms(
    make_generator: Callable[..., LatentDiffusion], make_problems: Callable[[int], list[Problem]]
) -> None:  # fmt: skip
    problems = make_problems(2)
    generator = make_generator()
    start = generator.begin(problems)
    objective = uvce().objective(problems, start.anchors[0], TinyClassifier())
    assert {name: weight for name, (weight, _) in objective.items()} == WEIGHTS
    scene = generator(start.controls, start.anchors[0])[-1]
    for _, term in objective.values():
        assert term(scene).shape == (2,) and (term(scene) >= 0).all()


def test_what_is_measured() -> None:
    (problem,), _ = pose(uvce(target="viaduct"), One("rock crab"))
    draw = torch.Generator().manual_seed(3)
    original, best = torch.rand(2, 3, 16, 16, generator=draw)
    before, after = TinyClassifier()(torch.stack([original, best])).logits.softmax(dim=1)
    found = uvce().measure(problem, original, best, TinyClassifier())
    assert (found["source"], found["target"]) == ("rock crab", "viaduct")
    assert found["predicted_before"] == CLASSES[int(before.argmax())]
    assert found["predicted_after"] == CLASSES[int(after.argmax())]
    assert found["success"] is (found["predicted_after"] == "viaduct")
    named = {"rock crab", "viaduct", found["predicted_before"], found["predicted_after"]}
    assert set(found["confidence_before"]) == set(found["confidence_after"]) == named
    for name in named:
        assert found["confidence_before"][name] == pytest.approx(before[CLASSES.index(name)].item())
        assert found["confidence_after"][name] == pytest.approx(after[CLASSES.index(name)].item())


def test_success_is_the_prediction_of_the_saved_picture() -> None:
    dataset = One("rock crab")
    top = CLASSES[int(TinyClassifier()(dataset.example.image[None]).logits.argmax())]
    wrong = next(name for name in CLASSES if name not in (top, "rock crab"))
    for target, success in ((top, True), (wrong, False)):
        if target == "rock crab":
            continue
        (problem,), _ = pose(uvce(target=target), dataset)
        measured = uvce().measure(problem, dataset.example.image, dataset.example.image, TinyClassifier())
        assert measured["success"] is success
