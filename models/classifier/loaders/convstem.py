"""Vision transformers whose patches come from convolutions (Singh et al., 2023), adversarially trained."""

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
    """A vision transformer of timm with a convolutional stem in the place of its patches, from a file of weights.

    name: timm's, of a transformer with patches of 16 px; stem_channels: of the stem's first convolution; checkpoint:
    the file (safetensors or of `torch.save`), one output per label; state_dict_entries, key_mapping: where in it the
    weights lie, and rules for their names (see `models.classifier.loaders.checkpoint.load_checkpoint`); mean, std: per
    RGB channel, in [0, 1] units, where the file has no normalisation; labels: `imagenet`, a text file of one name per
    line, or the names."""
    key, names = f"classifier.name={name}", read_labels(labels)
    allowed = timm.list_models("*vit*_patch16_224") + timm.list_models("deit*_patch16_224")
    if name not in allowed:
        raise UserError(f"{key}: allowed are transformers with patches of 16 px, such as {', '.join(allowed[:5])}")
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(name, num_classes=len(names))
        network.patch_embed.proj = convolutional_stem(stem_channels, network.embed_dim)
    found = load_checkpoint(
        network, Path(checkpoint), state_dict_entries, key_mapping, f"classifier.checkpoint={checkpoint}", names
    )
    mean, std = found or (mean, std)
    return ImageClassifier(
        network, names, IMAGE_SIZE, mean, std, "bicubic", domain, forward_logits, f"{key} classifier.labels"
    )


def convolutional_stem(stem_channels: int, outputs: int) -> nn.Sequential:
    """Pictures "b 3 s s" to features "b outputs s/16 s/16": four convolutions of stride 2, each of twice the channels
    of the one before, and one of 1 px."""
    layers: list[nn.Module] = []
    for given, made in pairwise((3, *(stem_channels * 2**i for i in range(4)))):
        layers += [nn.Conv2d(given, made, 3, stride=2, padding=1), LayerNorm2d(made), nn.GELU()]
    return nn.Sequential(OrderedDict(stem=nn.Sequential(*layers, nn.Conv2d(stem_channels * 8, outputs, 1))))
