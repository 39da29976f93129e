"""Detection of layouts: the same units and maps, whatever the order of a network's dimensions."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classifier_lens.models.classifier.feature_layout import (
    NUM_IMAGE_PAIRS,
    ChannelDim,
    FeatureLayout,
    detect_layout,
    flatten_spatial,
    half_image_probes,
)
from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.classifier.loaders.timm import timm_classifier
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.units.addressing import FEATURES, Unit, pooled_outputs
from classifier_lens.tasks.units.hirescam import hirescam
from tests.models.classifier.test_image_classifier import hooks_in, linear, wrap

# --- canonical layout --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spatial_dims", "shape", "canonical_shape"),
    [
        ((2, 3), (5, 4, 4), (2, 5, 4, 4)),
        ((1, 2), (4, 4, 5), (2, 5, 4, 4)),
        ((1,), (9, 5), (2, 9, 5)),
        ((2,), (5, 9), (2, 9, 5)),
        ((2,), (3, 9, 5), (2, 9, 15)),
        ((), (1, 1, 5), (2, 5)),
        ((), (5, 1), (2, 5)),
    ],
)
def test_the_canonical_layout_is_a_permutation_of_the_output(
    spatial_dims: tuple[int, ...], shape: tuple[int, ...], canonical_shape: tuple[int, ...]
) -> None:
    layout, output = FeatureLayout(spatial_dims, shape), torch.rand(2, *shape)
    assert layout.to_canonical(output).shape == canonical_shape
    assert torch.equal(layout.from_canonical(layout.to_canonical(output)), output)


ORDERS: dict[str, tuple[Callable[[Tensor], Tensor], FeatureLayout | None]] = {
    "channels first": (lambda maps: maps, FeatureLayout((2, 3), (5, 4, 4))),
    "channels last": (lambda maps: maps.permute(0, 2, 3, 1), FeatureLayout((1, 2), (4, 4, 5))),
    "tokens": (lambda maps: maps.flatten(2).transpose(1, 2), FeatureLayout((1,), (16, 5))),
    "tokens last": (lambda maps: maps.flatten(2), FeatureLayout((2,), (5, 16))),
    "after a class token": (
        lambda maps: F.pad(maps.flatten(2), (1, 0), value=1.0).transpose(1, 2),
        FeatureLayout((1,), (17, 5)),
    ),
    "in heads": (lambda maps: maps.flatten(2).unflatten(1, (1, 5)).transpose(2, 3), FeatureLayout((2,), (1, 16, 5))),
    "averaged": (lambda maps: maps.mean((2, 3), keepdim=True), FeatureLayout((), (5, 1, 1))),
    "columns before rows": (lambda maps: maps.transpose(2, 3), None),
    "tokens in columns": (lambda maps: maps.transpose(2, 3).flatten(2), None),
    "in windows": (lambda maps: maps.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).reshape(-1, 4, 5), None),
    "mixed": (lambda maps: maps.flatten(1) @ mixing(80) + 0, FeatureLayout((), (80,))),
    "everywhere": (lambda maps: (maps.flatten(1) @ mixing(80)).view(-1, 5, 4, 4), None),
}


def mixing(n: int) -> Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_dimensions_is_detected(order: str) -> None:
    maps = F.conv2d(
        half_image_probes(16), torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1)), stride=4
    )
    arranged, expected = ORDERS[order]
    assert detect_layout(nn.Identity(), arranged(maps)) == expected


def test_sizes_do_not_matter() -> None:
    """As many channels as rows and columns."""
    maps = F.conv2d(
        half_image_probes(16), torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1)), stride=4
    )
    assert detect_layout(nn.Identity(), maps) == FeatureLayout((2, 3), (4, 4, 4))
    assert detect_layout(nn.Identity(), maps.permute(0, 2, 3, 1)) == FeatureLayout((1, 2), (4, 4, 4))


def test_the_channels_of_standard_layers_are_known_by_definition() -> None:
    everywhere = torch.rand(5 * NUM_IMAGE_PAIRS, 6, 7, generator=torch.Generator().manual_seed(0))
    assert detect_layout(nn.Linear(7, 7), everywhere) == ChannelDim(2) and detect_layout(nn.GELU(), everywhere) is None
    assert detect_layout(nn.Conv2d(6, 6, 1), everywhere[..., None].expand(-1, -1, -1, 7)) == ChannelDim(1)


# --- user networks -----------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One ReLU object after two layers, in place, and a layer whose input is given by its name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.relu = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 8, 1), nn.ReLU(inplace=True)
        self.both, self.head = Both(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.both(values=self.relu(self.b(self.relu(self.a(x)))))["maps"]
        out: Tensor = self.head(maps.mean((2, 3)))
        return out


class Both(nn.Module):
    def forward(self, values: Tensor) -> dict[str, Tensor]:
        return {"maps": values}


def test_every_call_of_a_module_has_an_address() -> None:
    classifier, images = wrap(Twice()), torch.rand(2, 3, 8, 8)
    network = classifier.network
    first = network.a(images).relu()
    second = network.b(first).relu()
    _, result = classifier.forward_with_activations(images, ["relu#0", "relu#1", "relu#1.in", "a", "a#0", "both.in"])
    torch.testing.assert_close(result["relu#0"], first)
    torch.testing.assert_close(result["relu#1"], second)
    torch.testing.assert_close(result["relu#1.in"], network.b(first))
    torch.testing.assert_close(result["a"], network.a(images))
    assert torch.equal(result["a"], result["a#0"]) and torch.equal(result["both.in"], result["relu#1"])
    assert classifier.cam_module == "relu#1"
    assert hirescam(classifier, images[0], Unit(FEATURES, 1)) is not None
    assert pooled_outputs(classifier, images, ["relu#0"])["relu#0"].shape == (2, 4)


def test_a_module_that_is_used_twice_is_refused_without_a_call() -> None:
    classifier = wrap(Twice())
    for name, message in (
        ("relu", "relu: the network uses the module 2 times; allowed are relu#0 … relu#1"),
        ("relu.in", "relu.in: the network uses the module 2 times; allowed are relu#0.in … relu#1.in"),
        ("relu#2", "relu#2: the network uses the module 2 times; allowed are"),
        ("a#1", "a#1: the network uses the module 1 times; allowed are a#0"),
        ("both", "the network does not use the module both, or it returns no tensor"),
        ("relv#0", "no module relv#0; nearest are relu"),
    ):
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            classifier.forward_with_activations(torch.rand(1, 3, 8, 8), [name])
        assert "\n" not in str(caught.value) and hooks_in(classifier) == 0


def test_an_output_without_a_row_per_image_is_refused() -> None:
    """Windows of a map are rows of a larger batch: row 1 is not the second image."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.inside, self.head = nn.Conv2d(3, 4, 1), nn.GELU(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            windows = self.maps(x).unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(-1, 16, 4)
            out: Tensor = self.head(self.inside(windows).view(len(x), -1, 4).mean(1))
            return out

    with pytest.raises(
        UserError, match=r"inside: which dimension of its output of shape \(8, 16, 4\) contains the channels is unknown"
    ):
        wrap(Windows()).forward_with_activations(torch.rand(2, 3, 8, 8), ["inside"])
    assert wrap(linear()).cam_module is None


# --- families of timm --------------------------------------------------------------------------------------

SMALL = {"depths": (1, 1, 2, 1), "img_size": 64}
# By architecture: what makes it small, and the order of its last map.
FAMILIES: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_vit2": {},
    "test_mambaout": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "num_heads": (1, 2, 2, 2), "window_size": 4, **SMALL},
    "swinv2_tiny_window8_256": {"embed_dim": 24, "num_heads": (1, 2, 2, 2), "window_size": 4, **SMALL},
    "regnetx_002": {},
    "edgenext_xx_small": {},
    "pvt_v2_b0": {},
    "mobilevit_xxs": {},
    "deit_tiny_patch16_224": {"depth": 3, "embed_dim": 48, "num_heads": 2, "img_size": 64, "global_pool": "avg"},
}


def small_network(name: str) -> ImageClassifier:
    """A network for 64 px images, or larger ones if the last map would have few positions."""
    settings = FAMILIES[name]
    return from_timm(name, 128 if name == "mobilevit_xxs" else 64, **settings)


def from_timm(name: str, size: int, **settings: Any) -> ImageClassifier:
    """Random weights, also in the last layer, which some networks initialize with 0."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3, **settings)
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.02)
    return wrap(network, 3, size)


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> ImageClassifier:
    return small_network(request.param)


def test_the_cam_module_of_every_family_is_detected_quickly(family: ImageClassifier) -> None:
    clock = time.monotonic()
    module = family.cam_module
    assert module is not None and time.monotonic() - clock < 20
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    response, result = family.forward_with_activations(image.requires_grad_(), [module])
    assert response.features is not None and result[module].ndim in (3, 4)
    if (
        flatten_spatial(result[module]).shape[1] != response.features.shape[1]
    ):  # those have layers between map and features
        assert family.network.__class__.__name__ in ("MambaOut",)


def test_a_change_in_a_part_of_the_image_changes_that_part_of_the_map(family: ImageClassifier) -> None:
    assert family.cam_module is not None
    base, other = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    changed = base.clone()
    changed[:, 32:, :32] = other[:, 32:, :32]
    with torch.no_grad():
        maps = flatten_spatial(
            family.forward_with_activations(torch.stack([base, changed]), [family.cam_module])[1][family.cam_module]
        )
    squares = (maps[1] - maps[0]).square().sum(dim=0)
    side = int(len(squares) ** 0.5)
    squares, half = squares[-side * side :].view(side, side), side // 2
    corners = torch.stack(
        [squares[:half, :half], squares[:half, -half:], squares[-half:, :half], squares[-half:, -half:]]
    )
    assert corners.mean(dim=(1, 2)).argmax() == 2, "the lower left"


def test_units_of_the_map_are_its_channels(family: ImageClassifier) -> None:
    assert family.cam_module is not None
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    values = pooled_outputs(family, images, [family.cam_module])[family.cam_module]
    maps = family.forward_with_activations(images, [family.cam_module])[1][family.cam_module]
    torch.testing.assert_close(values, flatten_spatial(maps).mean(dim=2))
    result = hirescam(family, images[0], Unit(FEATURES, 0))
    assert result is not None and result.shape == (64, 64) and result.isfinite().all()


def test_channels_last_and_first_have_the_same_map_of_a_unit() -> None:
    """HiResCAM sums over channels, in any order of dimensions."""

    class Ordered(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.maps, self.order, self.head, self.last = nn.Conv2d(3, 4, 1), nn.Identity(), nn.Linear(4, 3), last

        def forward(self, x: Tensor) -> Tensor:
            maps = self.maps(x).sin()
            maps = self.order(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.order(maps)
            out: Tensor = self.head(maps.square().mean((2, 3)))
            return out

    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(6))
    first, last = (wrap(Ordered(last)) for last in (False, True))
    assert first.cam_module == last.cam_module == "order"
    for unit in (Unit(FEATURES, 2), Unit("order", 1)):
        torch.testing.assert_close(hirescam(last, image, unit), hirescam(first, image, unit))
    values = [pooled_outputs(c, image[None], ["order"])["order"] for c in (first, last)]
    torch.testing.assert_close(*values)


def test_tokens_that_are_not_in_row_major_order_have_no_map() -> None:
    """The tokens of Hiera are ordered by mask units, not by rows."""
    settings = {"img_size": (64, 64), "embed_dim": 8, "stages": (1, 1, 1, 1), "mask_unit_size": (8, 8)}
    classifier = from_timm("hiera_tiny_224", 64, **settings)
    _, result = classifier.forward_with_activations(torch.rand(2, 3, 64, 64), ["blocks.0.norm2"])
    assert result["blocks.0.norm2"].shape == (2, 8), "the mean over what is no map"


def test_every_module_of_timm_is_recorded_once() -> None:
    classifier = timm_classifier("test_resnet", False, None, None, [], [], "imagenet", "imagenet")
    assert (
        classifier.forward_with_activations(torch.rand(1, 3, 64, 64), ["global_pool"])[1]["global_pool"].shape[0] == 1
    )
