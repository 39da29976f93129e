"""Effects of overlays on classifiers whose outputs are known by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from classifier_lens.runner.types import Example, UnreadableImageError, UserError
from classifier_lens.tasks.interventions.overlay_effects import PlainImages, outputs, overlay_effects
from tests.tasks.tiny import NAMES, Pictures, colour, mean_colors, noise

IMAGES = torch.stack([colour(0.2, 0.5, 0.1), colour(0.4, 0.3, 0.6), colour(0.1, 0.2, 0.3)])


def test_log_odds_of_probabilities() -> None:
    result = outputs(mean_colors(), IMAGES)
    p = IMAGES.mean(dim=(2, 3)).double().softmax(dim=1)
    assert torch.allclose(result.probabilities, p) and torch.allclose(result.log_odds, (p / (1 - p)).log())


def test_log_odds_stay_finite_where_the_classifier_is_sure() -> None:
    sure = outputs(mean_colors(), 1000 * IMAGES)
    assert sure.log_odds.isfinite().all() and sure.log_odds.max() < 28


def test_no_change_has_no_effect() -> None:
    plain = outputs(mean_colors(), IMAGES)
    for effect in overlay_effects(plain, plain):
        assert (effect.effect.value, effect.effect.p_value, effect.probability_change) == (0.0, 1.0, 0.0)


def test_the_class_that_an_overlay_raises_is_first() -> None:
    blue = IMAGES + torch.tensor([0.0, 0.0, 2.0]).view(1, 3, 1, 1)
    first, second, third = overlay_effects(outputs(mean_colors(), IMAGES), outputs(mean_colors(), blue))
    assert (first.label, first.rank, third.rank) == (2, 1, 3)
    assert first.effect.value == pytest.approx(2.0), "log p2/(p0 + p1) rises by what is added to the logit"
    assert second.effect.value < 0
    assert sum(effect.probability_change for effect in (first, second, third)) == pytest.approx(0)


def test_accuracy_counts_images_of_known_classes() -> None:
    result = outputs(mean_colors(), IMAGES)  # predicted as 1, 2, 2
    assert result.accuracy([1, 0, None]) == 0.5 and result.accuracy([None] * 3) is None


def test_the_first_readable_images_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = noise(5)

    def fail() -> torch.Tensor:
        raise UnreadableImageError("x1: is broken")

    dataset.examples[1] = Example("x1", fail, NAMES[1], origin=Path("x1.png"))
    dataset.examples[2] = Example("x2", dataset.examples[2].load, "a class that the classifier does not have")
    images = PlainImages(dataset, mean_colors(), 3)
    assert len(images.pixels) == 3 and images.labels == [0, None, 0]
    assert torch.equal(images.pixels[0], dataset[0].image) and "image skipped: x1: is broken" in capsys.readouterr().out
    assert images.digest != PlainImages(dataset, mean_colors(), 2).digest


def test_one_image_is_too_few() -> None:
    with pytest.raises(UserError, match="data: 1 images; overlays need two or more"):
        PlainImages(Pictures([colour(1, 0, 0)], ["urn"]), mean_colors(), 10)
