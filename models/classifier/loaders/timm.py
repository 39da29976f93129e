"""Any timm model, with its published weights or those of a file."""

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
    """Any timm model, with the preprocessing that timm records for it where it is not given.

    name: timm's, with or without a tag; pretrained: whether to load timm's weights (from its cache or the hub);
    revision: commit of the hub's repository, None for the newest; checkpoint: a file of weights to load instead
    (safetensors or of `torch.save`), one output per label; state_dict_entries, key_mapping: where in it they lie, and
    rules for their names (see `models.classifier.loaders.checkpoint.load_checkpoint`); labels: `imagenet`, a text file
    of one name per line, or the names; size: side in pixels; mean, std: per RGB channel, in [0, 1] units; None for
    those of the file, or timm's; output: what the network gives, one of `models.classifier.logits.OUTPUT_CONVERTERS`,
    None for logits."""
    key = f"classifier.name={name}"
    if not timm.is_model(name.split(".")[0]):
        close = ", ".join(difflib.get_close_matches(name.split(".")[0], timm.list_models(), 5)) or "none"
        raise UserError(f"{key}: timm {timm.__version__} has no such model; close ones: {close}")
    names = read_labels(labels)
    check_output_option(key, output, len(names))
    if size is not None:
        check_size(key, size)
    settings: dict[str, Any] = {"num_classes": expected_num_outputs(output, len(names))} if checkpoint else {}
    try:
        if pretrained and checkpoint is None:
            settings |= _pinned(key, name, revision)
        if size is not None and _fixed(name):
            settings["img_size"] = size
        with torch.random.fork_rng(devices=[]):  # random weights are the same in every run
            torch.manual_seed(0)
            network = timm.create_model(name, pretrained=pretrained and checkpoint is None, **settings)
    except _HUB_ERRORS as error:
        raise _missing_hub(key, name, revision) from error
    except (
        RuntimeError,
        ValueError,
        AssertionError,
    ) as error:  # a size that does not fit, an unknown tag, or no weights under this one
        raise UserError(f"{key}: {first_line(error)}") from error
    found = None
    if checkpoint is not None:
        found = load_checkpoint(
            network, Path(checkpoint), state_dict_entries, key_mapping, f"classifier.checkpoint={checkpoint}", names
        )
    data = timm.data.resolve_model_data_config(network)
    _, height, width = data["input_size"]
    if height != width:
        raise UserError(f"{key}: takes {height} x {width} pictures; only square ones are allowed")
    interpolation = "bicubic" if data["interpolation"] == "bicubic" else "bilinear"
    known = found or (data["mean"], data["std"])
    return ImageClassifier(
        network, names, height if size is None else size, known[0] if mean is None else mean,
        known[1] if std is None else std, interpolation, domain, forward_logits, f"{key} classifier.labels", output,
    )  # fmt: skip


def _fixed(name: str) -> bool:
    """Whether a network is built for one size of image, as transformers with learned positions are."""
    config = timm.get_pretrained_cfg(name)
    return bool(config and config.fixed_input_size)


_HUB_ERRORS = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, URLError)


def _pinned(key: str, name: str, revision: str | None) -> dict[str, Any]:
    """Settings that make timm load its weights at `revision`, once these are known to be cached or within reach.

    Raises UserError where they are not, at once and not after minutes of retries.
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
