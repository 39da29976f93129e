"""Networks of torchvision, from files of random weights in its cache."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from classifier_lens.models.classifier.loaders.torchvision import _create_network, torchvision_classifier
from classifier_lens.runner.types import UserError

PICTURES = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of torch hub."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def written(path: Path, name: str, outputs: int = 1000) -> nn.Module:
    """A network of random weights, which are saved at `path`."""
    torch.manual_seed(1)
    network = models.get_model(name, num_classes=outputs).eval()
    torch.save(network.state_dict(), path)
    return network


@pytest.mark.parametrize(
    ("name", "weights", "file"),
    [
        ("alexnet", "IMAGENET1K_V1", "alexnet-owt-7be5be79.pth"),
        ("resnet18", "DEFAULT", "resnet18-f37072fd.pth"),
        ("squeezenet1_1", "IMAGENET1K_V1", "squeezenet1_1-b8a52dc0.pth"),
    ],
)
def test_logits_are_those_of_the_plain_network(cache: Path, name: str, weights: str, file: str) -> None:
    network = written(cache / file, name)
    classifier = torchvision_classifier(name, weights, None, [], [], "imagenet", "imagenet")
    with torch.no_grad():
        torch.testing.assert_close(classifier(PICTURES).logits, network((PICTURES - MEAN) / STD))
    assert (classifier.size, classifier.interpolation, len(classifier.labels)) == (224, "bilinear", 1000)
    assert (classifier.head is None) == (name == "squeezenet1_1"), "a convolution is its last layer"


def test_weights_of_a_checkpoint(cache: Path, tmp_path: Path) -> None:
    network = written(tmp_path / "mine.pt", "resnet18", 3)
    classifier = torchvision_classifier(
        "resnet18", "DEFAULT", str(tmp_path / "mine.pt"), [], [], ["a", "b", "c"], "imagenet"
    )
    with torch.no_grad():
        torch.testing.assert_close(classifier(PICTURES).logits, network((PICTURES - MEAN) / STD))


def test_a_missing_file_names_the_command_that_gets_it(cache: Path) -> None:
    message = (
        r"weights=IMAGENET1K_V1: \S+/alexnet-owt-7be5be79\.pth is not there.*fetch torchvision/alexnet\.IMAGENET1K_V1`"
    )
    with pytest.raises(UserError, match=message) as caught:
        torchvision_classifier("alexnet", "IMAGENET1K_V1", None, [], [], "imagenet", "imagenet")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"fetch torchvision/resnet50\.IMAGENET1K_V2`"):
        torchvision_classifier("resnet50", "DEFAULT", None, [], [], "imagenet", "imagenet")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet5", "DEFAULT", "classifier.name=resnet5: torchvision"),
        ("fcn_resnet50", "DEFAULT", "has no such classifier"),
        (
            "alexnet",
            "IMAGENET1K_V2",
            "classifier.weights=IMAGENET1K_V2: of alexnet, allowed are IMAGENET1K_V1, DEFAULT",
        ),
    ],
)
def test_unknown_names_are_refused(name: str, weights: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        torchvision_classifier(name, weights, None, [], [], "imagenet", "imagenet")


# A RegNet computes its widths with tensors, which a device without data cannot.
DATALESS = [name for name in models.list_models(module=models) if not name.startswith("regnet_")]


@pytest.mark.parametrize("name", DATALESS)
def test_every_network_and_its_preprocessing_can_be_created(name: str) -> None:
    for weights in models.get_model_weights(name):
        seen = weights.transforms()
        assert len(seen.crop_size) == 1 and seen.interpolation.value in ("bilinear", "bicubic")
        with torch.device("meta"):
            network = _create_network(name, weights, 7)
        if name.startswith("vit_"):
            places = (seen.crop_size[0] // network.get_parameter("conv_proj.weight").shape[-1]) ** 2
            assert network.get_parameter("encoder.pos_embedding").shape[1] == places + 1
