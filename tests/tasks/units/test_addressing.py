"""Units: their addresses, and what they answer."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from classifier_lens.runner.types import UserError, printable
from classifier_lens.tasks.units.addressing import (
    FEATURES,
    Unit,
    activation,
    check_units,
    parse_unit,
    per_sample_activations,
    pooled_outputs,
)
from tests.tasks.tiny import SIDE, Maps, Tokens, classifier_of, plain


def pictures(n: int) -> Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("address", "unit"),
    [
        ("7", Unit(FEATURES, 7)),
        (7, Unit(FEATURES, 7)),
        (0, Unit(FEATURES, 0)),
        ("features:7", Unit("features", 7)),
        ("layer4:3", Unit("layer4", 3)),
        ("layer4.1.conv2:12", Unit("layer4.1.conv2", 12)),
        ("head.in:5", Unit("head.in", 5)),
    ],
)
def test_addresses(address: str | int, unit: Unit) -> None:
    assert parse_unit(address) == unit == parse_unit(str(unit))


@pytest.mark.parametrize(
    "address",
    ["layer4", "layer4:", ":3", "", "-1", -1, "layer4:-1", "1.5", "a:b", "3\n", True],
)
def test_what_is_no_address_is_refused_in_one_line(address: str | int) -> None:
    with pytest.raises(UserError, match=re.escape(printable(f"task.units={address}: allowed are a number"))) as caught:
        parse_unit(address)
    assert "such as head.in:565" in str(caught.value)


def test_a_feature_map_counts_by_its_mean_over_the_places() -> None:
    network, images = Maps(), pictures(3)
    found = pooled_outputs(classifier_of(network), images, ["early", "maps"])
    with torch.no_grad():
        early = network.early(images)
        maps = network.maps(network.act(early))
    assert found["early"].shape == (3, 5) and found["maps"].shape == (3, 4)
    for values, of in ((found["early"], early), (found["maps"], maps)):
        by_hand = torch.stack([of[:, :, y, x] for y in range(SIDE) for x in range(SIDE)]).sum(dim=0) / SIDE**2
        torch.testing.assert_close(values, by_hand)


def test_tokens_count_by_their_mean() -> None:
    network, images = Tokens(torch.linspace(-1, 1, 17)), pictures(2)
    found = pooled_outputs(classifier_of(network), images, ["blocks"])["blocks"]
    with torch.no_grad():
        patches = network.patches(images).flatten(2).transpose(1, 2)
        tokens = network.blocks(torch.cat([torch.ones(2, 1, 4), patches], dim=1))
    torch.testing.assert_close(found, tokens.sum(dim=1) / 17)


def test_features_are_what_the_last_layer_reads() -> None:
    network, images = Maps(), pictures(2)
    found = pooled_outputs(classifier_of(network), images, [FEATURES, "head.in", "head"])
    assert torch.equal(found[FEATURES], found["head.in"])
    torch.testing.assert_close(network.head(found[FEATURES]), found["head"])


def test_a_later_layer_that_works_in_place_does_not_change_what_a_module_gave() -> None:
    images, found = pictures(2), []
    for inplace in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
        found.append(pooled_outputs(classifier_of(network), images, ["0", "1.in", "1"]))
    assert found[0]["0"].min() < 0 <= found[0]["1"].min(), "the layer does change something"
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values)


def test_each_sample_answers_for_its_own_unit_in_all_of_its_views() -> None:
    classifier, images = classifier_of(Maps()), pictures(6)
    units = [Unit("early", 4), Unit(FEATURES, 1), Unit("maps", 3)]
    found = per_sample_activations(classifier, images, units, views=2)
    assert found.shape == (6, 1)
    for i, unit in enumerate(units):
        own = slice(2 * i, 2 * i + 2)
        alone = per_sample_activations(classifier, images[own], [unit], views=2)
        torch.testing.assert_close(found[own], alone)
        torch.testing.assert_close(
            alone[:, 0], pooled_outputs(classifier, images[own], [unit.module])[unit.module][:, unit.index]
        )
        torch.testing.assert_close(activation(classifier, images[own], unit), alone[:, 0])


def test_a_batch_equals_its_samples_and_has_their_gradients() -> None:
    classifier, images = classifier_of(Maps()), pictures(4).requires_grad_()
    units = [Unit("early", 0), Unit("maps", 2), Unit("head.in", 2), Unit("early", 0)]
    together = torch.autograd.grad(per_sample_activations(classifier, images, units, 1).sum(), images)[0]
    for i, unit in enumerate(units):
        leaf = images[i : i + 1].detach().requires_grad_()
        alone = torch.autograd.grad(per_sample_activations(classifier, leaf, [unit], 1).sum(), leaf)[0]
        torch.testing.assert_close(together[i : i + 1], alone)
        assert alone.any()


def test_activations_of_saved_pictures_carry_no_gradient() -> None:
    found = activation(classifier_of(Maps()), pictures(2).requires_grad_(), Unit("maps", 0))
    assert found.shape == (2,) and not found.requires_grad


@pytest.mark.parametrize(("unit", "last"), [(Unit("early", 5), 4), (Unit("maps", 4), 3), (Unit(FEATURES, 40), 3)])
def test_an_index_out_of_range_is_refused_with_the_range(unit: Unit, last: int) -> None:
    classifier = classifier_of(Maps())
    with pytest.raises(UserError) as caught:
        check_units(classifier, [Unit(FEATURES, 0), unit])
    assert str(caught.value) == f"task.units={unit}: allowed are {unit.module}:0 … {unit.module}:{last}"
    check_units(classifier, [Unit(unit.module, last), Unit(unit.module, 0)])


def test_an_unknown_module_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"no module erly; nearest are early") as caught:
        check_units(classifier_of(Maps()), [Unit("erly", 0)])
    assert "\n" not in str(caught.value)


def test_a_classifier_without_features_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"task\.units: the classifier returns no features") as caught:
        check_units(classifier_of(plain), [Unit(FEATURES, 0)])
    assert "\n" not in str(caught.value)
