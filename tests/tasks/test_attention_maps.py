"""Maps of a caption's words: what is asked, shown and measured, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from classifier_lens.runner.result_schema import ResultImages
from classifier_lens.runner.types import Scene, UserError
from classifier_lens.tasks.attention_maps import CLASS_NAME_MAP, AttentionMaps, word_maps
from tests.tasks.tiny import (
    DISTANCE_WEIGHTS,
    NAMES,
    SIDE,
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

DATA = noise(5)


class Attender(Maker):
    """Of side 4: word i is attended to in row i mod 4 alone, the phrase in the left column; the maximum is 0.5."""

    def word_attention_maps(self, image: Tensor, prompt: str, phrase: str, seed: int) -> tuple[Tensor, Tensor]:
        assert phrase in prompt and image.shape == (3, SIDE, SIDE)
        words, own = torch.zeros(len(prompt.split()), 4, 4), torch.zeros(4, 4)
        for i, word in enumerate(words):
            word[i % 4] = 0.5
        own[:, 0] = 0.5
        return words, own


def settings() -> dict[str, Any]:
    return {"preserve": "background", "mask": None, "weights": DISTANCE_WEIGHTS, "captioner": Captions()}


CASE = TaskCase(AttentionMaps, settings, DATA, mean_colors, Attender)
task, pose = CASE.task, CASE.pose


# --- what is asked -------------------------------------------------------------------------------------------


def test_a_problem_per_picture_of_which_no_word_changes() -> None:
    found, total = pose(task())
    assert total == len(found) == 5 and len({p.name for p in found}) == len({p.seed for p in found}) == 5
    for problem, example in zip(found, DATA.examples, strict=True):
        assert problem.image is not None and torch.equal(problem.image, example.image)
        assert problem.edit.source == problem.edit.target == Captions().caption(example)
        assert (
            problem.edit.source_words == NAMES[problem.label] == example.label and problem.label_index == problem.label
        )
        assert (problem.preserve, problem.mask, problem.image_name) == ("background", None, example.name)


@pytest.mark.parametrize("limit", [1, 3, 9])
def test_a_limit_takes_the_first_and_counts_all(limit: int) -> None:
    found, total = pose(task(), limit)
    assert total == 5 and [p.name for p in found] == [p.name for p in pose(task())[0][:limit]]


def test_a_class_that_the_classifier_does_not_know_is_refused() -> None:
    data = Pictures([colour(0, 0, 0)], ["heron"])
    with pytest.raises(UserError, match=r"data\.label=heron: no class of the classifier"):
        task().problems(world(data, mean_colors()))


def test_its_value_is_how_far_the_reconstruction_is() -> None:
    reference = preserved_reference(torch.stack([colour(0.5, 0, 0)]))
    objective = task().objective(pose(task())[0][:1], reference, mean_colors())
    assert {name: weight for name, (weight, _) in objective.items()} == DISTANCE_WEIGHTS
    assert [term(same_scene(reference)).item() for _, term in objective.values()] == [0, 0]
    moved = Scene(reference.original + 0.1, reference.original_latent, reference.original[:, None])
    assert objective["pixel_distance"][1](moved).item() == pytest.approx(0.01)


# --- what is shown and measured ------------------------------------------------------------------------------


def test_a_picture_per_word_and_one_of_the_class() -> None:
    problem = pose(task())[0][0]
    assert problem.edit.source == "a photograph of a rock crab"
    found = {
        field.key: image
        for field, image in task().illustrate(problem, result_images(colour(0, 0, 0)), mean_colors()).items()
    }
    words = [f"attention_{word}" for word in ("00_a", "01_photograph", "02_of", "03_a", "04_rock", "05_crab")]
    assert list(found) == [*words, CLASS_NAME_MAP.key] and keys(problem.edit.source) == words
    # Row 1 of 4 at twice the size: the weights of its neighbours at half a pixel's distance are 3/4 and 1/4.
    expected = torch.tensor([0, 1, 3, 3, 1, 0, 0, 0]) / 3
    torch.testing.assert_close(found["attention_01_photograph"], expected[None, :, None].expand(1, SIDE, SIDE))
    torch.testing.assert_close(found["attention_05_crab"], found["attention_01_photograph"])
    assert all(p.shape == (1, SIDE, SIDE) and p.max() == 1 and p.min() == 0 for p in found.values())


def test_signs_have_no_name() -> None:
    assert keys("an urn - Blue.") == ["attention_00_an", "attention_01_urn", "attention_02", "attention_03_blue"]


def keys(caption: str) -> list[str]:
    return [field.key for field in word_maps(caption.split())]


def shown(own: Tensor, words: Tensor, region: Tensor, gray: float = 0.5) -> ResultImages:
    fields = [*word_maps("a photograph of a rock crab".split()), CLASS_NAME_MAP]
    maps = dict(zip(fields, [*words.expand(6, 1, SIDE, SIDE), own.expand(1, SIDE, SIDE)], strict=True))
    result = colour(gray, gray, gray)
    return ResultImages(colour(0.5, 0.5, 0.5), result, result, region[None], (), maps)


def left(columns: int) -> Tensor:
    """1 in the first columns, 0 elsewhere."""
    return (torch.arange(SIDE) < columns).float().expand(SIDE, SIDE)


EVEN = torch.ones(SIDE, SIDE)


@pytest.mark.parametrize(
    ("own", "words", "within_class", "within_words"),
    [
        (left(4), EVEN, 0.5, 0.25), (left(2), EVEN, 1, 0.25),  # on the object, and the words are not
        (EVEN, EVEN, 0.25, 0.25), (1 - left(4), EVEN, 0, 0.25),  # even, or beside it
        (left(4), left(3), 0.5, 2 / 3), (left(4), left(4), 0.5, 0.5),  # the words are more, or as much
    ],
)  # fmt: skip
@pytest.mark.parametrize("preserve", ["background", "foreground"])
def test_the_shares_of_maps_on_the_object(
    own: Tensor, words: Tensor, within_class: float, within_words: float, preserve: str
) -> None:
    """The object is the left quarter; where it is preserved, the mask frees the rest. Nothing can succeed."""
    problem = pose(task(preserve=preserve))[0][0]
    mask = left(2) if preserve == "background" else 1 - left(2)
    found = task(preserve=preserve).measure(problem, shown(own, words, mask), mean_colors())
    assert "success" not in found and found["object_area"] == pytest.approx(0.25)
    assert found["share_on_object_class"] == pytest.approx(within_class)
    assert found["share_on_object_words"] == pytest.approx(within_words)


def test_every_word_has_its_share_in_the_captions_order() -> None:
    words = torch.stack([left(8 - i)[None] for i in range(6)])
    found = task().measure(pose(task())[0][0], shown(EVEN, words, left(2)), mean_colors())
    assert found["words"] == ["a", "photograph", "of", "a", "rock", "crab"]
    assert list(found["share_on_object"]) == keys("a photograph of a rock crab")
    assert list(found["share_on_object"].values()) == pytest.approx([2 / 8, 2 / 7, 2 / 6, 2 / 5, 2 / 4, 2 / 3])


@pytest.mark.parametrize(("best", "psnr"), [(0.6, 20), (0.51, 40), (0.5, 100)])
def test_the_reconstruction_is_measured(best: float, psnr: float) -> None:
    found = task().measure(pose(task())[0][0], shown(EVEN, EVEN, left(2), best), mean_colors())
    assert found["psnr"] == pytest.approx(psnr, abs=1e-3)
    assert found["source"] == "rock crab" and found["confidence_before"]["rock crab"] == pytest.approx(1 / 3)


def test_a_summary_has_means_and_none_of_nothing() -> None:
    values = {"share_on_object_class": 0.5, "share_on_object_words": 0.25, "object_area": 0.125, "psnr": 20.0}
    records = [values, {key: 3 * v for key, v in values.items()}]
    expected = {"results": 2} | {key: 2 * v for key, v in values.items()}
    assert task().summarize(records) == expected
    assert task().summarize([]) == {"results": 0}
