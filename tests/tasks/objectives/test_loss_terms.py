"""Objectives' terms by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import permutations

import pytest
import torch
from torch import Tensor

from classifier_lens.runner.optimization.augmentation import RandomCrops
from classifier_lens.runner.types import Head, Response, Scene, Term, UserError
from classifier_lens.tasks.objectives.loss_terms import (
    CONFIDENCE_MEASURES,
    class_log_prob,
    confidence_gap,
    npca_contribution,
    text_log_prob,
    unit_activation,
)
from classifier_lens.tasks.units.addressing import FEATURES, Unit
from classifier_lens.tasks.units.npca import Components
from tests.tasks.tiny import SIDE, Colours, Embeddings, Maps, classifier_of


class Constant:
    """A network whose logits do not depend on what it sees: probabilities 1/2, 1/4, 1/4."""

    labels: tuple[str, ...] = ("a", "b", "c")
    size = 4
    digest = fingerprint = "constant"
    domain: str | None = None
    head: Head | None = None
    cam_module: str | None = None

    def __call__(self, images: Tensor) -> Response:
        return Response(torch.tensor([2.0, 1.0, 1.0]).log().expand(len(images), 3), None)

    def forward_with_activations(self, images: Tensor, modules: Sequence[str]) -> tuple[Response, dict[str, Tensor]]:
        assert not modules
        return self(images), {}


class Level(Constant):
    """Logits (x, 0, 0) with x the mean of a view."""

    def __call__(self, images: Tensor) -> Response:
        level = images.mean(dim=(1, 2, 3))
        return Response(torch.stack([level, torch.zeros_like(level), torch.zeros_like(level)], dim=1), None)


def scene(*levels: tuple[float, ...]) -> Scene:
    """One sample per tuple, one view per level."""
    views = torch.tensor(levels)[:, :, None, None, None].expand(-1, -1, 3, 4, 4)
    return Scene(views[:, 0], views[:, 0], views)


def test_a_constant_network() -> None:
    value = class_log_prob(Constant(), torch.tensor([0, 1]))(scene((0.0, 1.0), (0.5, 0.2)))
    torch.testing.assert_close(value, torch.tensor([math.log(2), math.log(4)]))


def test_views_are_averaged_after_the_logarithm() -> None:
    """−log(e^x / (e^x + 2)) for x = 0 and x = 1, and their mean."""
    at = [math.log((math.exp(x) + 2) / math.exp(x)) for x in (0.0, 1.0)]
    value = class_log_prob(Level(), torch.tensor([0, 0]))(scene((0.0, 1.0), (1.0, 1.0)))
    assert value.tolist() == pytest.approx([sum(at) / 2, at[1]])


def test_lower_means_more_like_the_target() -> None:
    term = class_log_prob(Level(), torch.tensor([0, 1]))
    low, high = term(scene((0.1,), (0.1,))), term(scene((0.9,), (0.9,)))
    assert high[0] < low[0] and high[1] > low[1]


# --- every mode of every loss: values by hand on constant networks -------------------------------------------


class Answers(Constant):
    """Whatever it sees, it gives these probabilities and features."""

    def __init__(self, *probabilities: float, features: tuple[float, ...] = (0.0,)) -> None:
        self.logits, self.features = torch.tensor(probabilities).log(), torch.tensor(features)

    def __call__(self, images: Tensor) -> Response:
        return Response(self.logits.expand(len(images), -1), self.features.expand(len(images), -1))

    def forward_with_activations(self, images: Tensor, modules: Sequence[str]) -> tuple[Response, dict[str, Tensor]]:
        return self(images), {}


class Said:
    """A CLIP model that embeds every picture as the same direction."""

    fingerprint, logit_scale = "said", 10.0

    def __init__(self, *direction: float) -> None:
        self.direction = torch.tensor(direction)

    def embed_images(self, images: Tensor) -> Tensor:
        return self.direction.expand(len(images), -1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        raise NotImplementedError


ENOUGH = 99.0  # beyond every margin here
OURS, THEIRS = Answers(1 / 2, 1 / 4, 1 / 4), Answers(1 / 8, 3 / 8, 4 / 8)
BY_HAND = {  # of class 0 and of class 1
    "confidence": (1 / 2 - 1 / 8, 1 / 4 - 3 / 8),
    "log_confidence": (math.log(4), math.log(2 / 3)),
    # Over the best other class: log 2 and −log 2 of ours, −log 4 and log 3/4 of theirs.
    "margin": (math.log(2) + math.log(4), -math.log(2) - math.log(3 / 4)),
}


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("mode", CONFIDENCE_MEASURES)
def test_gaps_by_hand(mode: str, sign: float) -> None:
    """A gap is what our classifier sees more of the class than the other; lower is better."""
    term = confidence_gap(mode, OURS, THEIRS, torch.tensor([0, 1]), torch.tensor([sign, sign]), ENOUGH)
    found = term(scene((0.0, 1.0), (0.5, 0.2)))
    assert found.tolist() == pytest.approx([-sign * gap for gap in BY_HAND[mode]], rel=1e-5)
    swapped = confidence_gap(mode, THEIRS, OURS, torch.tensor([0, 1]), torch.tensor([-sign, -sign]), ENOUGH)
    assert swapped(scene((0.0,), (0.5,))).tolist() == pytest.approx(found.tolist())


def test_each_mode_of_a_gap_is_tested() -> None:
    assert set(CONFIDENCE_MEASURES) == set(BY_HAND) == {"confidence", "log_confidence", "margin"}
    with pytest.raises(UserError, match=r"task\.mode=loss: allowed are confidence, log_confidence, margin$"):
        confidence_gap("loss", OURS, THEIRS, torch.tensor([0]), torch.ones(1), ENOUGH)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_more_than_enough_of_a_margin_counts_no_more(sign: float) -> None:
    """Each classifier's part ends at 0.5 on the side that is wanted, and nowhere on the other."""
    term = confidence_gap("margin", OURS, THEIRS, torch.tensor([0, 1]), torch.tensor([sign, sign]), 0.5)
    margins = (math.log(2), -math.log(4)), (-math.log(2), math.log(3 / 4))  # ours and theirs, of class 0 and 1
    expected = [-(min(sign * ours, 0.5) + min(-sign * theirs, 0.5)) for ours, theirs in margins]
    assert expected[0] == (-1 if sign == 1 else pytest.approx(math.log(8)))
    assert term(scene((0.0, 1.0), (0.5, 0.2))).tolist() == pytest.approx(expected, rel=1e-5)


def test_two_texts_by_hand() -> None:
    """Similarities 0.6 and 0.8: at a temperature of 0.1 the second is e² times as likely, at 1 e^0.2 times."""
    texts = torch.eye(2).expand(2, 2, 2)
    for temperature, ratio in ((0.1, math.exp(2)), (1.0, math.exp(0.2))):
        found = text_log_prob(Said(0.6, 0.8), texts, torch.tensor([0, 1]), temperature)(scene((0.0, 1.0), (0.5, 0.2)))
        assert found.tolist() == pytest.approx([math.log(1 + ratio), math.log(1 + 1 / ratio)], rel=1e-5)


def test_each_sample_has_its_own_texts() -> None:
    texts = torch.stack([torch.eye(2), torch.eye(2).flip(0)])
    found = text_log_prob(Said(0.6, 0.8), texts, torch.tensor([0, 0]), 0.1)(scene((0.0,), (0.0,)))
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(2)), math.log(1 + math.exp(-2))], rel=1e-5)


def test_activations_by_hand() -> None:
    """Features 3 and −5: raised, the value is −φ; lowered, it is φ."""
    classifier = Answers(1.0, features=(3.0, -5.0))
    units = [Unit(FEATURES, 0), Unit(FEATURES, 1), Unit(FEATURES, 0), Unit(FEATURES, 1)]
    found = unit_activation(classifier, units, torch.tensor([1.0, 1.0, -1.0, -1.0]))(scene(*[(0.5, 0.1)] * 4))
    assert found.tolist() == [-3.0, 5.0, 3.0, -5.0]


def test_contributions_by_hand() -> None:
    """w = (2, 1), mean (1, 1), v = (0.6, 0.8) and (0.8, −0.6): of φ = (1, 3) they are 1.4 · 2.2 and 0.2 · −0.4."""
    vectors = torch.tensor([[0.6, 0.8], [0.8, -0.6]], dtype=torch.double)
    own = Components(torch.tensor([2.0, 1.0]), torch.ones(2), vectors, torch.ones(2))
    asked = [(own, 0), (own, 1), (own, 0), (own, 1)]
    term = npca_contribution(Answers(1.0, features=(1.0, 3.0)), asked, torch.tensor([1.0, 1.0, -1.0, -1.0]))
    assert term(scene(*[(0.5, 0.1)] * 4)).tolist() == pytest.approx([-3.08, 0.08, 3.08, -0.08])


# --- laws of all of them, on networks that look at the picture ------------------------------------------------


def components_of(seed: int) -> Components:
    """A class's components with random values: four orthonormal vectors."""
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(4, 4, generator=draw)).Q
    return Components(torch.randn(4, generator=draw), torch.randn(4, generator=draw), vectors, torch.ones(4))


NETWORK, RIVAL, CLIP = classifier_of(Maps(0)), classifier_of(Maps(1)), Embeddings()
TARGETS, SIGNS = torch.tensor([2, 0, 1]), torch.tensor([1.0, -1.0, 1.0])
TEXTS = torch.nn.functional.normalize(torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0)), dim=2)
UNITS = [Unit("early", 2), Unit(FEATURES, 3), Unit("head.in", 0)]
COMPONENTS = [(components_of(0), 1), (components_of(1), 0), (components_of(0), 3)]
Rows = list[int]


def gap(mode: str, sign: float) -> Callable[[Rows], Term]:
    return lambda rows: confidence_gap(mode, NETWORK, RIVAL, TARGETS[rows], sign * SIGNS[rows], ENOUGH)


def unit(sign: float) -> Callable[[Rows], Term]:
    return lambda rows: unit_activation(NETWORK, [UNITS[i] for i in rows], sign * SIGNS[rows])


def component(sign: float) -> Callable[[Rows], Term]:
    return lambda rows: npca_contribution(NETWORK, [COMPONENTS[i] for i in rows], sign * SIGNS[rows])


# The term of some of the three samples, in any order.
LOSSES: dict[str, Callable[[Rows], Term]] = {
    "class_log_prob": lambda rows: class_log_prob(NETWORK, TARGETS[rows]),
    "text_log_prob": lambda rows: text_log_prob(CLIP, TEXTS[rows], TARGETS[rows] % 2, 0.1),
    **{f"confidence_gap {mode} {sign:+.0f}": gap(mode, sign) for mode in CONFIDENCE_MEASURES for sign in (1.0, -1.0)},
    **{f"unit_activation {sign:+.0f}": unit(sign) for sign in (1.0, -1.0)},
    **{f"npca_contribution {sign:+.0f}": component(sign) for sign in (1.0, -1.0)},
}
every_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
ALL = [0, 1, 2]


def pictures(views: int = 1) -> Tensor:
    return torch.rand(3, views, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))


def value(term: Term, views: Tensor) -> Tensor:
    return term(Scene(views[:, 0], views[:, 0], views))


def gradient(term: Term, views: Tensor) -> Tensor:
    leaf = views.clone().requires_grad_()
    return torch.autograd.grad(value(term, leaf).sum(), leaf)[0]


@every_loss
def test_five_steps_of_descent_on_the_pixels_lower_it(make: Callable[[Rows], Term]) -> None:
    term, views = make(ALL), pictures()
    values = [value(term, views)]
    for _ in range(5):
        slope = gradient(term, views)
        views = views - 0.2 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
        values.append(value(term, views))
    assert (values[-1] < values[0] - 1e-4).all(), torch.stack(values)
    assert torch.stack(values).isfinite().all()


@every_loss
def test_its_gradient_is_that_of_the_value(make: Callable[[Rows], Term]) -> None:
    term, views = make(ALL), pictures(2)
    slope, h = gradient(term, views), 1e-2
    direction = torch.randn(views.shape, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    numeric = (value(term, views + h * direction) - value(term, views - h * direction)).sum() / (2 * h)
    torch.testing.assert_close((slope * direction).sum(), numeric, rtol=2e-2, atol=2e-5)


@every_loss
def test_the_gradient_of_a_batch_is_that_of_its_samples(make: Callable[[Rows], Term]) -> None:
    views = pictures(2)
    together = gradient(make(ALL), views)
    for i in ALL:
        alone = gradient(make([i]), views[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-7)
        assert alone.any(dim=-1).any(dim=-1).any(dim=-1).all(), "every view counts"


@every_loss
def test_the_order_of_the_samples_does_not_matter(make: Callable[[Rows], Term]) -> None:
    views = pictures(2)
    expected = value(make(ALL), views)
    assert expected.shape == (3,) and len(set(expected.tolist())) == 3
    for order in permutations(ALL):
        torch.testing.assert_close(value(make(list(order)), views[list(order)]), expected[list(order)])


@every_loss
def test_it_is_the_mean_over_the_views(make: Callable[[Rows], Term]) -> None:
    views, term = pictures(3), make(ALL)
    alone = torch.stack([value(term, views[:, n : n + 1]) for n in range(3)])
    torch.testing.assert_close(value(term, views), alone.mean(dim=0), rtol=1e-5, atol=1e-6)
    assert (alone.std(dim=0) > 1e-4).all()


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_margin_has_a_gradient_wherever_a_picture_stands(scale: float) -> None:
    """Also where a classifier is so sure that its probabilities have none; and its value is of the logits' size."""
    weight = [[3.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0]]
    loud = classifier_of(Colours([[scale * w for w in row] for row in weight]))
    quiet = classifier_of(Colours([row[::-1] for row in weight]))
    # On red 1, green 0.5 and blue 0 the logits of class 0 are 3 and 0, the best others 1 and 1, times the scale.
    views = torch.tensor([1.0, 0.5, 0.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, SIDE, SIDE)
    term = confidence_gap("margin", loud, quiet, torch.tensor([0]), torch.ones(1), 1e4)
    found, slope = value(term, views), gradient(term, views)[0, 0].sum(dim=(1, 2))
    # Ours 3 r − 2 g; of theirs, whose logits are 3 b, 2 g and r, both others are 1: the two share the gradient.
    assert found.item() == pytest.approx(-(scale * 2 - (0 - 1)), rel=1e-5)
    assert slope.tolist() == pytest.approx([-(scale * 3 + 0.5), scale * 2 - 1, 3 * 1.0], abs=1e-3 * scale)


def test_a_margin_between_equal_logits_is_zero_and_has_a_gradient() -> None:
    flat = classifier_of(Colours([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]))
    other = classifier_of(Colours([[0, 0, 1.0], [0, 0, 1.0], [0, 0, 0]]))
    term = confidence_gap("margin", flat, other, torch.tensor([2]), torch.ones(1), ENOUGH)
    views = torch.full((1, 1, 3, SIDE, SIDE), 0.5)
    slope = gradient(term, views)
    assert value(term, views).item() == pytest.approx(-(0 + 0.5))
    assert slope.isfinite().all() and slope[0, 0].sum(dim=(1, 2)).tolist() == pytest.approx([1.0, -1.0, -1.0])


@pytest.mark.parametrize(("enough", "slope"), [(3.0, [-3.0, 2.0, 0]), (1.0, [0, 0, 0]), (99.0, [-3.0, 2.0, 3.0])])
def test_the_classifier_that_is_not_yet_sure_enough_goes_on(enough: float, slope: list[float]) -> None:
    """On red 1, green 0.5 and blue 0 our margin is 3 r − 2 g = 2; the other's is 3 b − 5, far enough for 3."""
    ours = classifier_of(Colours([[3.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0]]))
    theirs = classifier_of(Colours([[0, 0, 3.0], [0, 0, 0], [0, 0, 0]], [0, 5, 0]))
    views = torch.tensor([1.0, 0.5, 0.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, SIDE, SIDE)
    term = confidence_gap("margin", ours, theirs, torch.tensor([0]), torch.ones(1), enough)
    assert value(term, views).item() == pytest.approx(-(min(2, enough) + min(5, enough)))
    assert gradient(term, views)[0, 0].sum(dim=(1, 2)).tolist() == pytest.approx(slope)


class Watched(Level):
    """Remembers the sizes of the views that it is shown."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, list[tuple[int, ...]]()

    def __call__(self, images: Tensor) -> Response:
        self.seen.append(tuple(images.shape))
        return super().__call__(images)


@pytest.mark.parametrize(("ours", "theirs"), [(8, 12), (12, 8), (8, 8)])
def test_each_classifier_sees_crops_of_its_own_size(ours: int, theirs: int) -> None:
    first, second = Watched(ours), Watched(theirs)
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    augment = RandomCrops(crops=3, noise_std=0.0, power=0.3, min_crop_fraction=0.75, new_crops_per_prediction=False)
    shown = augment(Scene(image, image, image[:, None]), [1, 2], 0, first.size)
    term = confidence_gap("confidence", first, second, torch.tensor([0, 0]), torch.ones(2), ENOUGH)
    gap = term(shown)
    assert first.seen == [(6, 3, ours, ours)] and second.seen == [(6, 3, theirs, theirs)]
    assert gap.abs().max() < 0.01, "alike networks see the same regions"
