"""Rankings: one pass in chunks gives what the whole data set gives at once; and which units are chosen by them."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from classifier_lens.data.images import center_crop_resize
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.units import activation_ranking as module
from classifier_lens.tasks.units.activation_ranking import MAX_TOP_IMAGES, choose_units, image_batches, rank_units
from classifier_lens.tasks.units.addressing import FEATURES, Ranking, Unit, parse_unit, pooled_outputs
from tests.tasks.tiny import NAMES, SIDE, Colours, Maps, Pictures, cache_in, classifier_of, colour, noise, plain

NOTHING_KEPT = TensorCache(None)


@pytest.fixture(params=["early", FEATURES, "head.in"])
def layer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def all_values(network: Maps, layer: str, dataset: Pictures) -> Tensor:
    """What the units answer to all pictures together."""
    images = torch.stack([example.image for example in dataset.examples])
    return pooled_outputs(classifier_of(network), images, [layer])[layer]


@pytest.mark.parametrize(
    ("size", "chunk"), [(5, 8), (16, 8), (37, 8), (37, 36), (MAX_TOP_IMAGES + 1, MAX_TOP_IMAGES), (67, 64)]
)
def test_the_streamed_top_is_the_top_of_the_whole_set(
    size: int, chunk: int, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_SIZE", chunk)
    network, dataset = Maps(), noise(size)
    found = rank_units(classifier_of(network), layer, dataset, SIDE, NOTHING_KEPT)
    values = all_values(network, layer, dataset)
    ordered = values.sort(dim=0, descending=True)
    kept = min(MAX_TOP_IMAGES, size)
    assert found.top_values.shape == found.top_indices.shape == (kept, values.shape[1])
    torch.testing.assert_close(found.top_values, ordered.values[:kept])
    assert torch.equal(found.top_indices, ordered.indices[:kept])
    torch.testing.assert_close(values.gather(0, found.top_indices), found.top_values)


@pytest.mark.parametrize(("size", "chunk"), [(1, 8), (37, 8), (67, 64)])
def test_mean_and_standard_deviation_are_those_of_the_whole_set(
    size: int, chunk: int, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_SIZE", chunk)
    network, dataset = Maps(), noise(size)
    found = rank_units(classifier_of(network), layer, dataset, SIDE, NOTHING_KEPT)
    values = all_values(network, layer, dataset).double()
    torch.testing.assert_close(found.mean, values.mean(dim=0).float())
    torch.testing.assert_close(found.std, values.std(dim=0, correction=0).float(), rtol=1e-5, atol=1e-6)


def test_a_small_spread_around_a_large_mean_survives() -> None:
    """1000 and 1000.5 in turn: the spread is 1/4, which sums of squares in single precision would lose."""
    network = Colours(torch.eye(3).tolist())
    dataset = Pictures([colour(1000 + 0.5 * (i % 2), 0, 0) for i in range(64)], ["rock crab"] * 64)
    found = rank_units(classifier_of(network), FEATURES, dataset, SIDE, NOTHING_KEPT)
    assert found.mean[0].item() == pytest.approx(1000.25) and found.std[0].item() == pytest.approx(0.25, rel=1e-4)


def test_means_of_predicted_classes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits r, g and 2 b - 1. Two pictures are predicted as the first class, one as the second, none as the third."""
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    network = Colours([[1, 0, 0], [-3, 1, 0], [0, 0, 2]], [0, 0, -1])
    pictures = [colour(0.8, 0.2, 0.2), colour(0.1, 0.6, 0.4), colour(0.4, 0.0, 0.0)]
    dataset = Pictures(pictures, ["urn", "urn", "urn"])  # the pictures' own classes do not count
    found = rank_units(classifier_of(network), FEATURES, dataset, SIDE, NOTHING_KEPT)
    torch.testing.assert_close(found.class_means, torch.tensor([[0.6, 0.1, 0.1], [0.1, 0.6, 0.4], [0.0, 0.0, 0.0]]))
    chosen = choose_units("class:viaduct:3", classifier_of(network), lambda: found)
    assert [unit.index for unit in chosen] == [1, 2, 0], "0.6, 0 and -3 · 0.1"


def test_of_modules_that_the_last_layer_does_not_read_no_class_is_known() -> None:
    found = rank_units(classifier_of(Maps()), "early", noise(5), SIDE, NOTHING_KEPT)
    assert found.class_means.shape == (3, 5) and not found.class_means.any()


def test_pictures_are_shown_square_at_the_asked_size() -> None:
    image = torch.rand(3, 12, 20, generator=torch.Generator().manual_seed(0))
    ((rows, names, shown),) = image_batches(Pictures([image] * 3, NAMES), SIDE, [2, 0])
    assert (
        rows == [2, 0]
        and names == ["x2", "x0"]
        and torch.equal(shown, torch.stack([center_crop_resize(image, SIDE)] * 2))
    )


def test_the_second_time_nothing_is_computed(tmp_path: Path, layer: str) -> None:
    network, dataset, cache = Maps(), noise(9), cache_in(tmp_path)
    classifier = classifier_of(network)
    first = rank_units(classifier, layer, dataset, SIDE, cache)
    network.calls = 0
    second = rank_units(classifier, layer, dataset, SIDE, cache)
    assert network.calls == 0
    for field in fields(Ranking):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name)), field.name


def test_without_a_cache_all_is_computed_once() -> None:
    network = Maps()
    classifier = classifier_of(network)
    classifier.forward_with_activations(
        colour(0, 0, 0)[None], ["early"]
    )  # the first time tells the order of the module's dimensions
    network.calls = 0
    rank_units(classifier, "early", noise(9), SIDE, NOTHING_KEPT)
    assert network.calls == 1


def test_each_thing_that_a_ranking_depends_on_is_part_of_its_key(tmp_path: Path) -> None:
    network, cache = Maps(), cache_in(tmp_path)
    classifier = classifier_of(network)
    first = rank_units(classifier, FEATURES, noise(9), SIDE, cache)
    network.calls = 0
    rank_units(classifier, FEATURES, noise(9, digest="others"), SIDE, cache)
    assert network.calls, "another data set"
    network.calls = 0
    rank_units(classifier, FEATURES, noise(9), SIDE - 2, cache)
    assert network.calls, "another size"
    network.calls = 0
    assert rank_units(classifier, "early", noise(9), SIDE, cache).top_values.shape[1] == 5, "another module"
    other = Maps(seed=1)
    theirs = rank_units(classifier_of(other), FEATURES, noise(9), SIDE, cache)
    assert other.calls and not torch.equal(theirs.top_values, first.top_values), "another classifier"


# --- which units are chosen ----------------------------------------------------------------------------------


HEAD = [[1.0, 0.0, -2.0], [0.0, 0.5, 0.0], [0.0, -3.0, 1.0]]


def ranked(std: list[float], by_class: list[list[float]]) -> Ranking:
    nothing = torch.zeros(1, 3)
    return Ranking(nothing, nothing.long(), nothing[0], torch.tensor(std), torch.tensor(by_class))


def choose(units: str | int | list[str | int], **changes: Tensor) -> list[Unit]:
    ranking = ranked([4.0, 2.0, 1.0], [[0, 0, 0], [0.1, 0.3, 0.2], [3.0, 1.0, 2.0]])
    return choose_units(units, classifier_of(Colours(HEAD)), lambda: replace(ranking, **changes))


def test_top_units_by_hand() -> None:
    """Spread times the largest weight of any sign: 4 · 1, 2 · 3 and 1 · 2."""
    assert choose("top:1") == [Unit(FEATURES, 1)]
    assert choose("top:3") == [Unit(FEATURES, i) for i in (1, 0, 2)]


def test_the_units_of_a_class_by_hand() -> None:
    """Mean activation times weight: 0, 0.3 · 0.5 and 0; 0, -3 · 1 and 1 · 2."""
    assert choose("class:viaduct:2") == [Unit(FEATURES, 1), Unit(FEATURES, 0)]
    assert choose("class:Urn:3") == [Unit(FEATURES, i) for i in (2, 0, 1)]


def test_equal_units_are_taken_in_their_order() -> None:
    with pytest.raises(UserError, match="no training image is predicted as 'rock crab'"):
        choose("class:rock crab:2")
    assert choose("top:3", std=torch.tensor([6.0, 2.0, 3.0])) == [Unit(FEATURES, i) for i in range(3)]


def test_units_by_their_addresses_keep_their_order_and_need_no_ranking() -> None:
    def ranking() -> Ranking:
        raise AssertionError("a ranking was asked for")

    classifier = classifier_of(Maps())
    assert choose_units(3, classifier, ranking) == choose_units("3", classifier, ranking) == [Unit(FEATURES, 3)]
    addresses: list[str | int] = ["early:4", 2, "head.in:0"]
    expected = [Unit("early", 4), Unit(FEATURES, 2), Unit("head.in", 0)]
    assert choose_units(addresses, classifier, ranking) == expected


def test_names_of_classes_and_modules_may_hold_any_letter() -> None:
    classifier = classifier_of(Colours(HEAD))
    classifier.labels = ("a:2", *classifier.labels[1:])
    ranking = ranked([4.0, 2.0, 1.0], [[0.1, 0.3, 0.2], [0.0, 0.0, 0.0], [3.0, 1.0, 2.0]])
    assert len(choose_units("class:a:2:1", classifier, lambda: ranking)) == 1
    assert parse_unit("blocks.conv-1 x#1.in:7") == Unit("blocks.conv-1 x#1.in", 7)


@pytest.mark.parametrize(
    ("units", "said"),
    [
        ("top", "allowed are top:<n>"),
        ("top:x", "allowed are top:<n>"),
        ("top:-1", "allowed are top:<n>"),
        ("top:1:2", "allowed are top:<n>"),
        ("top:0", "1 … 3"),
        ("top:4", "1 … 3"),
        ("class:urn:0", "1 … 3"),
        ("class:urn", "allowed are top:<n>"),
        ("class:urn:x", "allowed are top:<n>"),
        ("class:urns:2", "no class of the classifier; nearest are urn"),
        ("spread:2", "no module spread"),
        ("words", "allowed are a number"),
        (3, "features:0 … features:2"),
        ([0, "head:7"], "head:0 … head:2"),
    ],
)
def test_other_units_are_refused_in_one_line(units: str | int | list[str | int], said: str) -> None:
    with pytest.raises(UserError) as caught:
        choose(units)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("units", ["top:1", "class:urn:1"])
def test_a_classifier_without_a_last_layer_has_no_best_units(units: str) -> None:
    with pytest.raises(UserError, match=rf"task\.units={units}: the classifier has no known last linear layer"):
        choose_units(units, classifier_of(plain), lambda: ranked([1.0] * 3, [[0.0] * 3] * 3))
