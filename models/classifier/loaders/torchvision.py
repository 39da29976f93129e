"""Any classification network of torchvision, with its published weights or those of a file."""

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

# Their published weights expect inputs in [-1, 1], which the networks themselves make of ImageNet's normalisation.
INCEPTION_NAMES = ("googlenet", "inception_v3")

# The files of its DenseNets are older than their names: `denselayer1.norm.1` is `denselayer1.norm1`.
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
    """Any classification network of torchvision, as the pictures of one of its sets of weights are prepared.

    name: torchvision's, e.g. resnet50; weights: the tag of a set of weights, e.g. IMAGENET1K_V2, or DEFAULT for what
    torchvision calls the best. Its file is looked for in torch hub's cache folder, and its size, mean, std and
    interpolation are used; its crop is not: the network sees the whole picture, resized to what the crop would leave;
    checkpoint: a file of weights to load instead (safetensors or of `torch.save`), one output per label;
    state_dict_entries, key_mapping: where in it they lie, and rules for their names (see
    `models.classifier.loaders.checkpoint.load_checkpoint`); labels: `imagenet`, a text file of one name per line, or
    the names; size: side in pixels; mean, std: per RGB channel, in [0, 1] units; None for those of the file, or of the
    weights; output: what the network gives, one of `models.classifier.logits.OUTPUT_CONVERTERS`, None for logits."""
    key = f"classifier.name={name}"
    if name not in (known := models.list_models(module=models)):
        close = ", ".join(difflib.get_close_matches(name, known, 5)) or "none"
        raise UserError(f"{key}: torchvision {torchvision.__version__} has no such classifier; close ones: {close}")
    if weights not in (tags := models.get_model_weights(name).__members__):
        raise UserError(f"classifier.weights={weights}: of {name}, allowed are {', '.join(tags)}")
    chosen = tags[weights]
    names = read_labels(labels)
    check_output_option(key, output, len(names))
    if size is not None:
        check_size(key, size)
    outputs = expected_num_outputs(output, len(names)) if checkpoint else len(chosen.meta["categories"])
    network = _plain(name, chosen, outputs, size)
    if checkpoint is None:
        found = load_checkpoint(
            network, _in_cache(f"{key} classifier.weights={weights}", name, chosen), (), DENSENET_RENAME_RULES, key
        )
    else:
        found = load_checkpoint(
            network, Path(checkpoint), state_dict_entries, key_mapping, f"classifier.checkpoint={checkpoint}", names
        )
    seen = chosen.transforms()
    known = found or (seen.mean, seen.std)
    return ImageClassifier(
        network, names, seen.crop_size[0] if size is None else size, known[0] if mean is None else mean,
        known[1] if std is None else std, seen.interpolation.value, domain, forward_logits, f"{key} classifier.labels",
        output,
    )  # fmt: skip


def _plain(name: str, weights: Any, outputs: int, size: int | None = None) -> nn.Module:
    """The network that a set of weights is of, before they are loaded; size: None for that of the weights."""
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


def _in_cache(key: str, name: str, weights: Any) -> Path:
    """The file of a set of weights in torch hub's cache folder. Raises UserError if it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not path.is_file():
        raise missing_weights_error(key, f"{path} is not there", fetch_command(f"torchvision/{name}.{weights.name}"))
    return path
