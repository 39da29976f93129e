"""Classification models of torchvision, with published weights or those of a checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision import models

from classifier_lens.models.classifier.compatibility import check_size
from classifier_lens.models.classifier.image_classifier import ImageClassifier, forward_logits
from classifier_lens.models.classifier.loaders.checkpoint import RenameRule, load_checkpoint
from classifier_lens.models.classifier.loaders.class_names import read_labels
from classifier_lens.models.classifier.logits import check_output_option, expected_num_outputs
from classifier_lens.models.hub import fetch_command, missing_weights_error
from classifier_lens.runner.types import UserError, first_line

# Their published weights expect inputs in [-1, 1]; the networks convert images that have ImageNet's normalization.
INCEPTION_NAMES = ("googlenet", "inception_v3")

# The published files of DenseNets have outdated names: `denselayer1.norm.1` instead of `denselayer1.norm1`.
DENSENET_RENAME_RULES = ({"from": r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", "to": r"\1\2."},)


def torchvision_classifier(
    name: str,
    weights: str,
    checkpoint: str | None,
    state_dict_entries: Sequence[str],
    key_mapping: Sequence[RenameRule],
    labels: str | Sequence[str],
    domain: str,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output: str | None = None,
) -> ImageClassifier:
    """A classification model of torchvision.

    Images are not cropped: the whole image is resized to the size of the published crop.

    Args:
        name: of the model, e.g. resnet50.
        weights: tag of published weights, e.g. IMAGENET1K_V2, or DEFAULT for the best according to torchvision. The
            file is read from torch hub's cache folder; its size, mean, std and interpolation are used.
        checkpoint: file of weights (safetensors or `torch.save`) that is loaded instead, with one output per label.
        state_dict_entries, key_mapping: see `models.classifier.loaders.checkpoint.load_checkpoint`.
        labels: `imagenet`, a text file with one name per line, or the names.
        size: side of the input in pixels, None for that of the published weights.
        mean, std: per RGB channel, for images in [0, 1]; None for those of the checkpoint, or of the published weights.
        output: type of the outputs, one of `models.classifier.logits.OUTPUT_CONVERTERS`, None for logits.
    """
    key = f"classifier.name={name}"
    if name not in (known_names := models.list_models(module=models)):
        similar = ", ".join(difflib.get_close_matches(name, known_names, 5)) or "none"
        raise UserError(f"{key}: torchvision {torchvision.__version__} has no such classifier; nearest are {similar}")
    if weights not in (tags := models.get_model_weights(name).__members__):
        raise UserError(f"classifier.weights={weights}: of {name}, allowed are {', '.join(tags)}")
    published = tags[weights]
    names = read_labels(labels)
    check_output_option(key, output, len(names))
    if size is not None:
        check_size(key, size)
    outputs = expected_num_outputs(output, len(names)) if checkpoint else len(published.meta["categories"])
    network = _create_network(name, published, outputs, size)
    if checkpoint is None:
        file = _cached_file(f"{key} classifier.weights={weights}", name, published)
        normalization = load_checkpoint(network, file, (), DENSENET_RENAME_RULES, key)
    else:
        normalization = load_checkpoint(
            network, Path(checkpoint), state_dict_entries, key_mapping, f"classifier.checkpoint={checkpoint}", names
        )
    preprocessing = published.transforms()
    default_mean, default_std = normalization or (preprocessing.mean, preprocessing.std)
    return ImageClassifier(
        network, names, preprocessing.crop_size[0] if size is None else size, default_mean if mean is None else mean,
        default_std if std is None else std, preprocessing.interpolation.value, domain, forward_logits,
        f"{key} classifier.labels", output,
    )  # fmt: skip


def _create_network(name: str, weights: Any, outputs: int, size: int | None = None) -> nn.Module:
    """The network with random weights; size: None for that of the published weights."""
    settings: dict[str, Any] = {"num_classes": outputs}
    if name.startswith("vit_"):
        settings["image_size"] = weights.meta["min_size"][0] if size is None else size
    if name in INCEPTION_NAMES:
        settings |= {"transform_input": True, "init_weights": False}
    try:
        with torch.random.fork_rng(devices=[]):
            return models.get_model(name, weights=None, **settings)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"classifier.name={name} classifier.size={size}: {first_line(error)}") from error


def _cached_file(key: str, name: str, weights: Any) -> Path:
    """The file of published weights in torch hub's cache folder. Raises UserError if it is missing."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not path.is_file():
        raise missing_weights_error(key, f"{path} is not there", fetch_command(f"torchvision/{name}.{weights.name}"))
    return path
