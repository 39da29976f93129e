"""Published CIFAR-10 networks."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from classifier_lens.models.classifier.cifar_resnet import CifarResNet
from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.hub import fetch_command, missing_weights_error
from classifier_lens.runner.types import UserError

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar10_resnet(path: str, depth: Literal[20, 32, 44, 56, 110], sha256: str) -> ImageClassifier:
    """A published CIFAR-10 ResNet (option A) of akamaster/pytorch_resnet_cifar10.

    path: the `.th` file, or the folder that contains `resnet<depth>-*.th`; sha256: of the file.
    """
    key = f"classifier.path={path}"
    file = Path(path)
    if file.is_dir():
        file = file / f"resnet{depth}-{sha256[:8]}.th"
    if not file.is_file():
        raise missing_weights_error(key, f"{file} is not there", fetch_command(f"cifar10_resnet{depth}"))
    data = file.read_bytes()
    if (actual := hashlib.sha256(data).hexdigest()) != sha256:
        raise UserError(f"{key}: SHA-256 of {file} is {actual}, expected {sha256}; fetch it again")
    state = torch.load(io.BytesIO(data), "cpu", weights_only=True)["state_dict"]
    network = CifarResNet(depth)
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return ImageClassifier(
        network, LABELS, 32, IMAGENET_MEAN, IMAGENET_STD, "bilinear", "cifar10", forward_cifar_resnet, key
    )


def forward_cifar_resnet(network: CifarResNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and pooled features, the input of the linear layer."""
    features = network.features(images)
    return network.linear(features), features
