"""Effects of phrases on a classifier that reads colors, in images whose colors the prompt decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.tasks.interventions.phrase_effects import Design, paired_effect, phrase_effects
from tests.tasks.tiny import NAMES, Colours, Maker, Pictures, classifier_of, colour, world

TEMPLATE = "a {class} {place} {thing}"
FACTORS: dict[str, list[str | None]] = {"place": ["on sand", "in snow", "in water"], "thing": [None, "with a flag"]}
SAND = 8.0  # added to the logit of the first class
BIAS = (-0.5, 0.0, 0.0)  # without sand another class is predicted


class Painter(Maker):
    """Red if the prompt says sand, green if it names the first class, blue by the seed."""

    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return torch.stack(
            [
                colour("on sand" in prompt, NAMES[0] in prompt, seed % 7 / 10)
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
        )


def design(path: Path, weight: Sequence[Sequence[float]], images: int = 24) -> Design:
    """weight: of the logits of `NAMES` for the mean red, green and blue."""
    inputs = world(Pictures([colour(1, 0, 0)], [NAMES[0]]), classifier_of(Colours(weight, BIAS)), generator=Painter())
    return Design(TEMPLATE, FACTORS, images, None, TensorCache(str(path)), inputs)


TIED = [[SAND, 0.0, 0.0], [SAND / 2, 0.0, 0.0], [SAND / 2, 0.0, 0.0]]  # sand decides, the object does not
CLEAN = [[0.0, SAND, 0.0], [0.0, SAND / 2, 0.0], [0.0, SAND / 2, 0.0]]
WITH_SAND = float(torch.tensor([SAND - 0.5, SAND / 2, SAND / 2]).softmax(0)[0])
WITHOUT = float(torch.tensor(BIAS).softmax(0)[0])


def test_the_shortcut_has_the_effect_that_was_put_in(tmp_path: Path) -> None:
    tied = design(tmp_path, TIED)
    effects = {e.phrase: e for e in phrase_effects(tied, 0, tied.class_set(NAMES[0]), tied.class_set(NAMES[1]))}
    exact = WITH_SAND - WITHOUT
    assert list(effects) == ["on sand", "in snow", "in water", "with a flag"]
    assert effects["on sand"].effect.value == pytest.approx(exact, abs=1e-6)
    assert effects["on sand"].on_class.value == pytest.approx(exact) == effects["on sand"].on_similar_class.value
    assert effects["in snow"].effect.value == pytest.approx(-exact / 2), "half of the others have sand"
    assert effects["with a flag"].effect.p_value > 0.05 and effects["on sand"].effect.p_value < 1e-6
    assert all(effect.share_generated is None for effect in effects.values())


def test_a_classifier_of_the_object_has_no_shortcut(tmp_path: Path) -> None:
    clean = design(tmp_path, CLEAN)
    effects = phrase_effects(clean, 0, clean.class_set(NAMES[0]), clean.class_set(NAMES[1]))
    assert max(abs(effect.effect.value) for effect in effects) < 1e-6


def test_matched_pairs_change_one_phrase_and_nothing_else(tmp_path: Path) -> None:
    tied = design(tmp_path, TIED)
    pair = paired_effect(tied, 0, tied.class_set(NAMES[0]), tied.class_set(NAMES[1]), ("place", "on sand"), 4)
    assert pair.effect.value == pytest.approx(WITH_SAND - WITHOUT)
    assert (pair.sufficiency.value, pair.sufficiency.count) == (1.0, 8), "all images change once they have sand"
    assert (pair.necessity.value, pair.necessity.count) == (1.0, 4), "those with sand change once it is gone"
    assert pair.without.shape == pair.with_phrase.shape == (8, 3, 8, 8)
    assert torch.equal(pair.without[:, 1:], pair.with_phrase[:, 1:]), "the object and the noise are the same"
    assert not pair.without[:, 0].any() and pair.with_phrase[:, 0].eq(1).all()


def test_the_class_that_is_confused_most(tmp_path: Path) -> None:
    network = design(tmp_path, [[1.0, 0, 0], [0.0, 0, 0], [0.5, 0, 0]])
    assert network.class_set(NAMES[0]).most_confused(0) == 2
