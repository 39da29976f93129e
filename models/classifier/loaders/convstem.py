"""Adversarially trained vision transformers with a convolutional stem (Singh et al., 2023)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import timm
import torch
from timm.layers import LayerNorm2d
from torch import nn

from classifier_lens.models.classifier.image_classifier import ImageClassifier, forward_logits
from classifier_lens.models.classifier.loaders.checkpoint import RenameRule, load_checkpoint
from classifier_lens.models.classifier.loaders.class_names import read_labels
from classifier_lens.runner.configuration.value_ranges import Names, Normalization, Pixels
from classifier_lens.runner.types import UserError

IMAGE_SIZE = 224  # px


def convstem_classifier(
    name: str,
    stem_channels: Pixels,
    checkpoint: str,
    state_dict_entries: Sequence[str],
    key_mapping: Sequence[RenameRule],
    mean: Normalization,
    std: Normalization,
    labels: str | Names,
    domain: str,
) -> ImageClassifier:
    """A vision transformer of timm with a convolutional stem instead of the patch embedding, from a checkpoint.

    Args:
        name: a transformer of timm with patches of 16 pixels.
        stem_channels: output channels of the first convolution of the stem.
        checkpoint: file of weights (safetensors or `torch.save`) with one output per label.
        state_dict_entries, key_mapping: see `models.classifier.loaders.checkpoint.load_checkpoint`.
        mean, std: per RGB channel, for images in [0, 1]; used if the checkpoint has no normalization.
        labels: `imagenet`, a text file with one name per line, or the names.
    """
    key, names = f"classifier.name={name}", read_labels(labels)
    allowed = timm.list_models("*vit*_patch16_224") + timm.list_models("deit*_patch16_224")
    if name not in allowed:
        raise UserError(f"{key}: allowed are transformers with patches of 16 pixels, such as {', '.join(allowed[:5])}")
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(name, num_classes=len(names))
        network.patch_embed.proj = convolutional_stem(stem_channels, network.embed_dim)
    normalization = load_checkpoint(
        network, Path(checkpoint), state_dict_entries, key_mapping, f"classifier.checkpoint={checkpoint}", names
    )
    mean, std = normalization or (mean, std)
    return ImageClassifier(
        network, names, IMAGE_SIZE, mean, std, "bicubic", domain, forward_logits, f"{key} classifier.labels"
    )


def convolutional_stem(stem_channels: int, outputs: int) -> nn.Sequential:
    """Images "b 3 s s" to features "b outputs s/16 s/16": four 3 x 3 convolutions of stride 2, which double the number
    of channels, and one 1 x 1 convolution."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in pairwise((3, *(stem_channels * 2**i for i in range(4)))):
        layers += [nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1), LayerNorm2d(out_channels), nn.GELU()]
    return nn.Sequential(OrderedDict(stem=nn.Sequential(*layers, nn.Conv2d(stem_channels * 8, outputs, 1))))
