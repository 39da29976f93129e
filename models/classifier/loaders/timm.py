"""Models of timm, with published weights or those of a checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from classifier_lens.models.classifier.compatibility import check_size
from classifier_lens.models.classifier.image_classifier import ImageClassifier, forward_logits
from classifier_lens.models.classifier.loaders.checkpoint import RenameRule, load_checkpoint
from classifier_lens.models.classifier.loaders.class_names import read_labels
from classifier_lens.models.classifier.logits import check_output_option, expected_num_outputs
from classifier_lens.models.hub import fetch_command, find_cached_file, missing_weights_error
from classifier_lens.runner.types import UserError, first_line


def timm_classifier(
    name: str, pretrained: bool, revision: str | None, checkpoint: str | None, state_dict_entries: Sequence[str],
    key_mapping: Sequence[RenameRule], labels: str | Sequence[str], domain: str, size: int | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None, output: str | None = None,
) -> ImageClassifier:  # fmt: skip
    """A model of timm.

    Args:
        name: of the model, with or without a tag.
        pretrained: whether to load timm's weights, from its cache or the hub.
        revision: commit of the hub repository, None for the newest.
        checkpoint: file of weights (safetensors or `torch.save`) that is loaded instead, with one output per label.
        state_dict_entries, key_mapping: see `models.classifier.loaders.checkpoint.load_checkpoint`.
        labels: `imagenet`, a text file with one name per line, or the names.
        size: side of the input in pixels, None for that of timm.
        mean, std: per RGB channel, for images in [0, 1]; None for those of the checkpoint, or of timm.
        output: type of the outputs, one of `models.classifier.logits.OUTPUT_CONVERTERS`, None for logits.
    """
    key = f"classifier.name={name}"
    if not timm.is_model(name.split(".")[0]):
        similar = ", ".join(difflib.get_close_matches(name.split(".")[0], timm.list_models(), 5)) or "none"
        raise UserError(f"{key}: timm {timm.__version__} has no such model; nearest are {similar}")
    names = read_labels(labels)
    check_output_option(key, output, len(names))
    if size is not None:
        check_size(key, size)
    settings: dict[str, Any] = {"num_classes": expected_num_outputs(output, len(names))} if checkpoint else {}
    try:
        if pretrained and checkpoint is None:
            settings |= _pinned_weights(key, name, revision)
        if size is not None and _has_fixed_size(name):
            settings["img_size"] = size
        with torch.random.fork_rng(devices=[]):  # random weights are the same in every run
            torch.manual_seed(0)
            network = timm.create_model(name, pretrained=pretrained and checkpoint is None, **settings)
    except _HUB_ERRORS as error:
        raise _missing_hub(key, name, revision) from error
    except (RuntimeError, ValueError, AssertionError) as error:  # invalid size, unknown tag, or a tag without weights
        raise UserError(f"{key}: {first_line(error)}") from error
    normalization = None
    if checkpoint is not None:
        normalization = load_checkpoint(
            network, Path(checkpoint), state_dict_entries, key_mapping, f"classifier.checkpoint={checkpoint}", names
        )
    data = timm.data.resolve_model_data_config(network)
    _, height, width = data["input_size"]
    if height != width:
        raise UserError(f"{key}: takes {height} x {width} images; only square images are supported")
    interpolation = "bicubic" if data["interpolation"] == "bicubic" else "bilinear"
    default_mean, default_std = normalization or (data["mean"], data["std"])
    return ImageClassifier(
        network, names, height if size is None else size, default_mean if mean is None else mean,
        default_std if std is None else std, interpolation, domain, forward_logits, f"{key} classifier.labels", output,
    )  # fmt: skip


def _has_fixed_size(name: str) -> bool:
    """Whether a network is built for one input size, as transformers with learned position embeddings are."""
    config = timm.get_pretrained_cfg(name)
    return bool(config and config.fixed_input_size)


_HUB_ERRORS = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, URLError)


def _pinned_weights(key: str, name: str, revision: str | None) -> dict[str, Any]:
    """Settings by which timm loads its weights at `revision`.

    Raises UserError at once, not after minutes of retries, if the weights are neither cached nor can be downloaded.
    """
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if not config or not config.hf_hub_id:
        return {}
    find_cached_file(
        f"{key}: its file of weights", config.hf_hub_id, ("model.safetensors", "pytorch_model.bin"), revision
    )
    return {"pretrained_cfg_overlay": {"hf_hub_id": f"{config.hf_hub_id}@{revision}"}} if revision else {}


def _missing_hub(key: str, name: str, revision: str | None) -> UserError:
    reason = "its weights are not in the local cache and the hub cannot be reached"
    return missing_weights_error(key, reason, fetch_command(f"timm/{name}", revision))
