"""Each doubt is raised by what it is about, and by nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from classifier_lens.runner.optimization.loop import OptimizationState
from classifier_lens.runner.results.result_warnings import (
    MAX_START_RMS,
    MIN_RELATIVE_DECREASE,
    ResultWarnings,
    optimization_warnings,
    preserved_distance,
)
from classifier_lens.runner.types import CaptionEdit, Problem, Reference
from tests.conftest import Identity, TinyClassifier, reference_of

LABELS = TinyClassifier.labels


def state_of(*totals: Sequence[float], best: Sequence[int]) -> OptimizationState:
    """A state whose history has these totals per evaluation."""
    nothing: dict[str, Tensor] = {}
    return OptimizationState(
        nothing, nothing, torch.zeros(len(best)), torch.tensor(best), [None] * len(best),
        history=[{"total": list(values)} for values in totals],
    )  # fmt: skip


def good(n: int) -> OptimizationState:
    """A descent that was worth it: the second of three updates was the best."""
    return state_of(*[[value] * n for value in (2.0, 1.5, 1.0, 1.2)], best=[2] * n)


def problem(image: Tensor | None = None, prompt_check: tuple[str, int] | None = None) -> Problem:
    edit = CaptionEdit.unchanged("a crab", "crab")
    load = None if image is None else image.clone
    return Problem(
        name="x", seed=0, edit=edit, load=load, image_name="x", preserve="background", prompt_check=prompt_check
    )


class Painter(Identity):
    """Prompts have the grey level that stands in them; counts its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        self.asked += zip(prompts, seeds, strict=True)
        levels = torch.tensor([float(prompt) for prompt in prompts])
        return levels[:, None, None, None].expand(-1, 3, 4, 4)


def doubts() -> ResultWarnings:
    return ResultWarnings(Painter(), TinyClassifier())


def called(level: float) -> int:
    """The class of a grey picture."""
    return int(TinyClassifier()(torch.full((1, 3, 4, 4), level)).logits.argmax())


# --- the start -----------------------------------------------------------------------------------------------


def half_kept(n: int) -> Reference:
    """Originals of 4 x 4 black pixels, of which the left half is free."""
    mask = torch.zeros(n, 1, 4, 4)
    mask[..., :2] = 1.0
    return replace(reference_of(n), mask=mask, original=torch.zeros(n, 3, 4, 4))


def test_the_distance_is_the_rms_over_what_is_kept() -> None:
    images = torch.zeros(3, 3, 4, 4)
    images[0, :, :, :2] = 1.0  # where it is free
    images[1, :, :, 2:] = 0.3
    images[2, 0, 0, 3] = 0.6  # one of 3 · 8 kept values
    assert preserved_distance(images, half_kept(3)) == pytest.approx([0.0, 0.3, (0.36 / 24) ** 0.5])


def test_a_soft_mask_weighs_the_squares() -> None:
    reference = replace(half_kept(1), mask=torch.full((1, 1, 4, 4), 0.25))
    assert preserved_distance(torch.full((1, 3, 4, 4), 0.2), reference) == pytest.approx([0.2])


def test_where_all_is_free_nothing_is_far() -> None:
    reference = replace(half_kept(1), mask=torch.ones(1, 1, 4, 4))
    assert preserved_distance(torch.ones(1, 3, 4, 4), reference) == [0.0]


def test_a_start_far_from_the_original_is_doubted() -> None:
    starts = torch.stack([torch.full((3, 4, 4), level) for level in (MAX_START_RMS + 0.02, MAX_START_RMS - 0.02, 0.5)])
    problems = [problem(starts[0]), problem(starts[0]), problem(None)]  # the last was drawn: it has no original
    found = doubts()(problems, half_kept(3), starts, good(3))
    assert found == [
        [f"the start is far from the original: RMS {MAX_START_RMS + 0.02:.2f} in the preserved region"],
        [],
        [],
    ]


def test_an_image_that_is_not_predicted_as_its_class_is_doubted() -> None:
    """Labels in another order, a wrong normalization or a weak network: the question is about something else then."""
    reference = half_kept(4)
    predicted = int(TinyClassifier()(reference.original[:1]).logits.argmax())
    other = (predicted + 1) % len(LABELS)
    asked = [
        problem(reference.original[0]),
        problem(reference.original[0]),
        problem(None),
        problem(reference.original[0]),
    ]
    shown = [replace(p, label_index=shows) for p, shows in zip(asked, (other, predicted, other, None), strict=True)]
    wrong, *others = doubts()(shown, reference, torch.zeros(4, 3, 4, 4), good(4))
    assert len(wrong) == 1 and others == [[], [], []]
    assert f"the original is predicted as {LABELS[predicted]} (" in wrong[0]
    assert f"not as its label {LABELS[other]} (" in wrong[0]


# --- the words -----------------------------------------------------------------------------------------------


def test_a_name_that_means_something_else_is_doubted() -> None:
    right, level = called(0.6), 0.6
    wrong = (right + 1) % len(LABELS)
    problems = [problem(prompt_check=(str(level), wrong)), problem(prompt_check=(str(level), right)), problem()]
    found = doubts()(problems, half_kept(3), torch.zeros(3, 3, 4, 4), good(3))
    assert found == [[f"the generator's image of '0.6' is predicted as {LABELS[right]}"], [], []]


def test_a_name_is_tried_once_and_always_with_the_same_seed() -> None:
    painter = Painter()
    ask = ResultWarnings(painter, TinyClassifier())
    prompt_checks = [("0.6", 0), ("0.6", 0), ("0.1", 0)]
    first = ask([problem(prompt_check=c) for c in prompt_checks], half_kept(3), torch.zeros(3, 3, 4, 4), good(3))
    again = ask([problem(prompt_check=c) for c in prompt_checks], half_kept(3), torch.zeros(3, 3, 4, 4), good(3))
    assert first == again and painter.asked == [("0.6", 0), ("0.1", 0)]


# --- the descent ---------------------------------------------------------------------------------------------


def test_a_good_descent_is_not_doubted() -> None:
    assert optimization_warnings(good(1), 0) == []


def test_a_descent_that_found_nothing_better_is_doubted() -> None:
    assert optimization_warnings(state_of([2.0], [3.0], [2.5], best=[0]), 0) == ["no step is better than the start"]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_descent_that_hardly_moved_is_doubted(sign: float) -> None:
    """The fall is measured by the start's size, whatever its sign."""
    start = 2.0 * sign
    for share, doubted in ((0.9 * MIN_RELATIVE_DECREASE, True), (1.1 * MIN_RELATIVE_DECREASE, False)):
        state = state_of([start], [start - share * 2.0], [start + 1], best=[1])
        assert bool(optimization_warnings(state, 0)) is doubted
    assert optimization_warnings(state_of([2.0], [1.99], [2.0], best=[1]), 0) == [
        "the objective hardly moved: 2 to 1.99"
    ]


def test_a_descent_that_was_still_falling_is_doubted() -> None:
    state = state_of([2.0], [1.5], [1.0], best=[2])
    assert optimization_warnings(state, 0) == ["the best step is the last of 2: more steps may improve the result"]


def test_without_steps_there_is_nothing_to_doubt() -> None:
    assert optimization_warnings(state_of([2.0], best=[0]), 0) == []


def test_every_sample_has_its_own_doubts() -> None:
    state = state_of([2.0, 2.0, 2.0], [1.0, 3.0, 1.5], [1.5, 2.5, 1.0], best=[1, 0, 2])
    found = doubts()([problem()] * 3, half_kept(3), torch.zeros(3, 3, 4, 4), state)
    assert [len(own) for own in found] == [0, 1, 1]
    assert "no step" in found[1][0] and "more steps" in found[2][0]


@pytest.mark.parametrize(("confidence", "doubted"), [(0.999, False), (0.98, True)])
def test_where_the_target_is_sure_more_steps_are_not_advised(confidence: float, doubted: bool) -> None:
    """What still falls is the distance to the original."""
    state = state_of([2.0], [1.5], [1.0], best=[2])
    for evaluation in state.history:
        evaluation["class_log_prob"] = [-math.log(confidence)]
    assert bool(optimization_warnings(state, 0)) is doubted


def test_a_class_that_a_small_generator_does_not_draw_is_told() -> None:
    """Whatever the picture of its name is called."""
    wrong = (called(0.6) + 1) % len(LABELS)
    for draws, told in ((None, 0), ([LABELS[wrong].lower()], 0), (["a", "b"], 1)):
        asked = doubts()
        asked.generator.known_classes = draws
        (notes,) = asked([problem(prompt_check=("0.6", wrong))], half_kept(1), torch.zeros(1, 3, 4, 4), good(1))
        line = f"trained on 2 classes alone, a, b; '{LABELS[wrong]}' is not among them"
        assert len([note for note in notes if line in note]) == told
