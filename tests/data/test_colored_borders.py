"""Colored borders of photographs."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest, chi2_contingency

from classifier_lens.data import cifar10
from classifier_lens.data.colored_borders import BORDER_COLORS, CIFAR10_FACTORS, paint_borders, sample_border_colors
from classifier_lens.data.shortcuts import check_shortcuts
from classifier_lens.runner.types import UserError

NAMES = tuple(BORDER_COLORS)
TIES = {"cat": {"border": "red"}, "ship": {"border": "blue"}}
LABELS = torch.arange(20_000) % len(cifar10.CLASSES)
CAT, SHIP = (cifar10.CLASSES.index(name) for name in TIES)


def drawn(strength: float, seed: int = 1) -> torch.Tensor:
    return sample_border_colors(LABELS, range(len(LABELS)), seed, TIES, dict.fromkeys(TIES, strength))


def test_full_strength_changes_the_color_of_its_class_alone() -> None:
    colors, uniform = drawn(1.0), drawn(0.0)
    assert (colors[LABELS == CAT] == NAMES.index("red")).all() and (colors[LABELS == SHIP] == NAMES.index("blue")).all()
    others = (LABELS != CAT) & (LABELS != SHIP)
    assert torch.equal(colors[others], uniform[others])


def test_without_strength_colors_are_uniform_and_independent_of_the_class() -> None:
    uniform = drawn(0.0)
    assert torch.equal(uniform, sample_border_colors(LABELS, range(len(LABELS)), 1, {}, {}))
    table = torch.zeros(len(cifar10.CLASSES), len(BORDER_COLORS))
    table.index_put_((LABELS, uniform), torch.tensor(1.0), accumulate=True)
    assert chi2_contingency(table.numpy()).pvalue > 1e-3 and (table.sum(0) > 1800).all()


@pytest.mark.parametrize("strength", [0.5, 0.9, 0.99])
def test_the_frequency_of_a_color_follows_the_strength(strength: float) -> None:
    hits = int((drawn(strength)[LABELS == CAT] == NAMES.index("red")).sum())
    assert binomtest(hits, 2000, strength + (1 - strength) / len(BORDER_COLORS)).pvalue > 1e-3


def test_a_border_depends_on_seed_and_position_alone() -> None:
    whole, some = drawn(0.5), [19_999, 3, 512]
    again = sample_border_colors(LABELS[some], some, 1, TIES, dict.fromkeys(TIES, 0.5))
    assert torch.equal(whole[some], again) and not torch.equal(whole, drawn(0.5, seed=2))


def test_a_border_has_its_color_and_preserves_the_interior() -> None:
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    colors, before = torch.tensor([NAMES.index(name) for name in ("red", "white", "cyan")]), images.clone()
    painted = paint_borders(images, colors, 2)
    assert torch.equal(images, before) and torch.equal(painted[..., 2:-2, 2:-2], images[..., 2:-2, 2:-2])
    ring = torch.ones(32, 32, dtype=torch.bool)
    ring[2:-2, 2:-2] = False
    for image, name in zip(painted, ("red", "white", "cyan"), strict=True):
        assert (image[:, ring] == torch.tensor(BORDER_COLORS[name], dtype=torch.uint8)[:, None]).all()


@pytest.mark.parametrize("width", [0, 16])
def test_a_border_that_covers_the_image_is_refused(width: int) -> None:
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(UserError, match=rf"border={width}: allowed are 1 to 15 pixels"):
        paint_borders(images, torch.tensor([0]), width)
    assert paint_borders(images, torch.tensor([0]), 15).flatten(2).amin(2).tolist() == [[0, 0, 0]]


def test_unknown_colors_and_classes_are_refused() -> None:
    with pytest.raises(UserError, match=r"shortcuts.cat.border=mauve: allowed are red, .*black$"):
        check_shortcuts({"cat": {"border": "mauve"}}, CIFAR10_FACTORS)
    with pytest.raises(UserError, match=r"class=viaduct: allowed are airplane"):
        check_shortcuts({"viaduct": {"border": "red"}}, CIFAR10_FACTORS)
