"""Where a unit looks, by hand: HiResCAM of networks whose gradients are known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classifier_lens.tasks.units.addressing import FEATURES, Unit
from classifier_lens.tasks.units.hirescam import hirescam
from tests.tasks.tiny import SIDE, Maps, Tokens, classifier_of, plain


def picture(seed: int = 0, side: int = SIDE) -> Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))


def shown(values: Tensor, side: int = SIDE) -> Tensor:
    """A small map at the picture's size, positive and with sum 1."""
    large = F.interpolate(values[None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0].clamp(
        min=0
    )
    return large / large.sum()


@pytest.mark.parametrize("unit", range(4))
@pytest.mark.parametrize("module", [FEATURES, "head.in", "maps"])
def test_behind_an_average_a_unit_looks_where_its_own_map_is_active(module: str, unit: int) -> None:
    """φ_n is the mean of map n: its gradient is the same everywhere in map n, and 0 in the others."""
    network, image = Maps(seed=unit), picture()
    with torch.no_grad():
        maps = network.maps(network.act(network.early(image[None])))[0]
    assert maps[unit].max() > 0
    found = hirescam(classifier_of(network), image, Unit(module, unit))
    assert found is not None and not found.requires_grad
    torch.testing.assert_close(found, shown(maps[unit]))
    assert found.sum().item() == pytest.approx(1, abs=1e-5) and found.min() >= 0


def test_a_large_picture_has_a_large_map() -> None:
    network, image = Maps(), picture(side=20)
    classifier = classifier_of(network)
    with torch.no_grad():
        maps = network.maps(network.act(network.early(classifier.preprocess(image[None]))))[0]
    found = hirescam(classifier, image, Unit(FEATURES, 1))
    assert found is not None and found.shape == (20, 20)
    torch.testing.assert_close(found, shown(maps[1], 20))


def test_gradient_and_map_are_multiplied_place_by_place() -> None:
    """Features that read each place with its own weight; Grad-CAM, which averages the gradient, would differ."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Conv2d(3, 2, 1, bias=False)
            self.mix, self.head = nn.Linear(2 * SIDE**2, 4), nn.Linear(4, 3)
            draw = torch.Generator().manual_seed(0)
            for weight in self.parameters():
                weight.data = torch.randn(weight.shape, generator=draw)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.mix(self.maps(x).flatten(1)))
            return out

    network, image = Placed(), picture()
    classifier = classifier_of(network)
    assert classifier.cam_module == "maps"
    maps = torch.einsum("chw,oc->ohw", image, network.maps.weight[:, :, 0, 0])
    gradients = {Unit(FEATURES, 2): network.mix.weight[2], Unit("head", 0): network.head.weight[0] @ network.mix.weight}
    for unit, gradient in gradients.items():
        product = gradient.view(2, SIDE, SIDE) * maps
        torch.testing.assert_close(hirescam(classifier, image, unit), shown(product.sum(dim=0)))


def test_a_unit_before_the_map_looks_where_it_is_active_itself() -> None:
    network, image = Maps(), picture()
    with torch.no_grad():
        early = network.early(image[None])[0]
    found = hirescam(classifier_of(network), image, Unit("early", 2))
    assert early[2].max() > 0
    torch.testing.assert_close(found, shown(early[2]))


@pytest.mark.parametrize("extra", [0, 1])
def test_tokens_are_a_square_and_a_class_token_is_left_out(extra: int) -> None:
    """φ_n = Σ a_p token_p,n: the map is a_p token_p,n at place p."""
    weights = torch.randn(16 + extra, generator=torch.Generator().manual_seed(1))
    network, image = Tokens(weights), picture()
    classifier = classifier_of(network)
    assert classifier.cam_module == "blocks"
    with torch.no_grad():
        tokens = network.blocks(network.patches(image[None]).flatten(2).transpose(1, 2))[0]
    for n in range(4):
        found = hirescam(classifier, image, Unit(FEATURES, n))
        torch.testing.assert_close(found, shown((weights[extra:] * tokens[:, n]).view(4, 4)))


def test_where_nothing_speaks_for_a_unit_the_map_is_empty_and_finite() -> None:
    network = Maps()
    with torch.no_grad():
        network.maps.weight[1], network.maps.get_parameter("bias")[1] = 0.0, -1.0
    found = hirescam(classifier_of(network), picture(), Unit(FEATURES, 1))
    assert found is not None and torch.equal(found, torch.zeros(SIDE, SIDE))


def test_a_network_without_a_map_has_none() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 4), nn.Linear(4, 3))
    assert hirescam(classifier_of(flat), picture(), Unit(FEATURES, 0)) is None
    assert hirescam(classifier_of(plain), picture(), Unit(FEATURES, 0)) is None
