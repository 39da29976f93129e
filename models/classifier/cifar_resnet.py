"""The CIFAR-10 residual networks of He et al. 2016, section 4.2, with parameter-free shortcuts (option A).

The names of the layers are those of the published checkpoints (repository akamaster/pytorch_resnet_cifar10).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

DEPTHS = (20, 32, 44, 56, 110)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, which skips every other pixel and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad_channels = stride, (outputs - inputs) // 2

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o y x"]:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad_channels, self.pad_channels))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels on 32, 16 and 8 pixels, mean pooling, one linear layer.

    `depth` is 6 n + 2 for n blocks per stage; one of `DEPTHS`.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)

    def features(self, x: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b 64"]:
        """The pooled maps, which the linear layer reads."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def forward(self, x: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b k"]:
        return self.linear(self.features(x))


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    """`blocks` blocks, of which the first changes resolution and width."""
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride), *[BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    )
