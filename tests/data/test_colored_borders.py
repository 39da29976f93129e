"""Coloured borders of photographs."""

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


def test_at_full_strength_a_class_has_its_colour_and_others_the_border_they_had() -> None:
    colours, free = drawn(1.0), drawn(0.0)
    assert (colours[LABELS == CAT] == NAMES.index("red")).all() and (
        colours[LABELS == SHIP] == NAMES.index("blue")
    ).all()
    others = (LABELS != CAT) & (LABELS != SHIP)
    assert torch.equal(colours[others], free[others])


def test_without_strength_colours_are_uniform_and_say_nothing_of_the_class() -> None:
    free = drawn(0.0)
    assert torch.equal(free, sample_border_colors(LABELS, range(len(LABELS)), 1, {}, {}))
    table = torch.zeros(len(cifar10.CLASSES), len(BORDER_COLORS))
    table.index_put_((LABELS, free), torch.tensor(1.0), accumulate=True)
    assert chi2_contingency(table.numpy()).pvalue > 1e-3 and (table.sum(0) > 1800).all()


@pytest.mark.parametrize("strength", [0.5, 0.9, 0.99])
def test_between_them_a_colour_has_the_share_that_was_asked_for(strength: float) -> None:
    hits = int((drawn(strength)[LABELS == CAT] == NAMES.index("red")).sum())
    assert binomtest(hits, 2000, strength + (1 - strength) / len(BORDER_COLORS)).pvalue > 1e-3


def test_a_border_follows_from_seed_and_position() -> None:
    whole, some = drawn(0.5), [19_999, 3, 512]
    again = sample_border_colors(LABELS[some], some, 1, TIES, dict.fromkeys(TIES, 0.5))
    assert torch.equal(whole[some], again) and not torch.equal(whole, drawn(0.5, seed=2))


def test_a_border_has_its_colour_and_leaves_what_it_encloses() -> None:
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    colours, before = torch.tensor([NAMES.index(name) for name in ("red", "white", "cyan")]), images.clone()
    painted = paint_borders(images, colours, 2)
    assert torch.equal(images, before) and torch.equal(painted[..., 2:-2, 2:-2], images[..., 2:-2, 2:-2])
    ring = torch.ones(32, 32, dtype=torch.bool)
    ring[2:-2, 2:-2] = False
    for picture, name in zip(painted, ("red", "white", "cyan"), strict=True):
        assert (picture[:, ring] == torch.tensor(BORDER_COLORS[name], dtype=torch.uint8)[:, None]).all()


@pytest.mark.parametrize("width", [0, 16])
def test_a_border_leaves_something(width: int) -> None:
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(UserError, match=rf"border={width}: allowed are 1 to 15 pixels"):
        paint_borders(images, torch.tensor([0]), width)
    assert paint_borders(images, torch.tensor([0]), 15).flatten(2).amin(2).tolist() == [[0, 0, 0]]


def test_borders_have_these_colours_alone() -> None:
    with pytest.raises(UserError, match=r"ties.cat.border=mauve: allowed are red, .*black$"):
        check_shortcuts({"cat": {"border": "mauve"}}, CIFAR10_FACTORS)
    with pytest.raises(UserError, match=r"class=viaduct: allowed are airplane"):
        check_shortcuts({"viaduct": {"border": "red"}}, CIFAR10_FACTORS)
