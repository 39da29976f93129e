"""Vision transformers with a convolutional stem, from files of random weights under the published names."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from classifier_lens.models.classifier.loaders.convstem import convolutional_stem, convstem_classifier
from classifier_lens.runner.types import UserError
from tests.cli import ROOT

PICTURES = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
# The stem as it is published: the convolutions are 0, 3, 6, 9 and 12, the norms 1, 4, 7 and 10.
PUBLISHED = {
    f"stem.{number}.{kind}" for number in (0, 1, 3, 4, 6, 7, 9, 10, 12) for kind in ("weight", "bias")
}  # fmt: skip


def made(architecture: str, **settings: int) -> torch.nn.Module:
    torch.manual_seed(0)
    network = timm.create_model(architecture, **settings).eval()
    network.patch_embed.proj = convolutional_stem(48, network.embed_dim)
    return network


def test_the_stem_has_the_published_names_and_a_position_per_patch() -> None:
    stem = convolutional_stem(4, 10)
    assert set(stem.state_dict()) == PUBLISHED
    assert stem(torch.rand(1, 3, 64, 64)).shape == (1, 10, 4, 4)
    assert [tuple(stem.state_dict()[f"stem.{i}.weight"].shape[:2]) for i in (0, 3, 6, 9, 12)] == [
        (4, 3), (8, 4), (16, 8), (32, 16), (10, 32),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def vit_s() -> torch.nn.Module:
    return made("deit_small_patch16_224")


@pytest.mark.parametrize("normalised", [True, False])
def test_the_published_layouts_of_vit_s(tmp_path: Path, vit_s: torch.nn.Module, normalised: bool) -> None:
    network = vit_s
    prefix = "model." if normalised else "module.base_model."
    state: dict[str, Tensor] = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    state |= {"normalize.mean": MEAN, "normalize.std": STD} if normalised else {}
    torch.save(state, tmp_path / "w.pt")
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        node = compose("config", overrides=["classifier=singh2023_vit_s", f"classifier.checkpoint={tmp_path / 'w.pt'}"])
    classifier = instantiate(node.classifier, _convert_="all")
    with torch.no_grad():
        expected = network((PICTURES - MEAN) / STD)
        torch.testing.assert_close(classifier(PICTURES).logits, expected, atol=1e-5, rtol=1e-4)
    assert (classifier.size, classifier.interpolation, len(classifier.labels)) == (224, "bicubic", 1000)


def test_images_are_not_normalized_with_mean_0_and_std_1(tmp_path: Path) -> None:
    network = made("vit_tiny_patch16_224", num_classes=2)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    classifier = convstem_classifier(
        "vit_tiny_patch16_224", 48, str(tmp_path / "w.pt"), [], [], [0.0] * 3, [1.0] * 3, ["a", "b"], "imagenet"
    )
    with torch.no_grad():
        torch.testing.assert_close(classifier(PICTURES).logits, network(PICTURES), atol=1e-5, rtol=1e-4)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="classifier.name=resnet18: allowed are transformers with patches of 16 pixels"):
        convstem_classifier("resnet18", 48, "w.pt", [], [], [0.0] * 3, [1.0] * 3, ["a", "b"], "imagenet")
