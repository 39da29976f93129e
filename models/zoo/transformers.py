"""Image classifiers in transformers' layout, from folders and from the hub's local cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from models.classifier import ImageClassifier, ask_transformers
from models.hub import load_frozen, local_folder, one_line
from models.zoo.labels import read_labels
from runner.types import UserError

# What preprocessor_config.json calls them, which are the numbers of Pillow's filters.
RESAMPLE = {2: "bilinear", 3: "bicubic"}


def transformers_classifier(
    path: str, revision: str | None, labels: str | Sequence[str] | None, domain: str | None
) -> ImageClassifier:
    """An image classifier of transformers, with the size, mean, std and interpolation of its preprocessor_config.json.

    A crop that stands there is not made: the network sees the whole picture, resized to what the crop would leave.
    path: a folder with config.json, preprocessor_config.json and weights, or a hub id that is in the local cache;
    revision: of a hub id, its commit, None for the newest; labels: a text file of one name per line or the names, None
    for those that config.json has, without what numbers and joins them.
    """
    key = f"classifier.path={path}"
    folder = local_folder(key, path, revision)
    with one_line(key):
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    network = load_frozen(key, folder, AutoModelForImageClassification, torch.float32)
    names = _own_labels(key, network.config.id2label) if labels is None else read_labels(labels)
    size, mean, std, interpolation = _preparation(key, processor)
    return ImageClassifier(
        network, names, size, mean, std, interpolation, domain, ask_transformers, f"{key} classifier.labels"
    )


def _own_labels(key: str, id2label: dict[int, str]) -> tuple[str, ...]:
    """The names of a configuration as a caption would have them: `026.Bronzed_Cowbird` is `Bronzed Cowbird`.

    Raises UserError if it names no classes.
    """
    labels = tuple(id2label[number] for number in sorted(id2label))
    if all(label == f"LABEL_{number}" for number, label in enumerate(labels)):
        raise UserError(f"{key}: its config.json names no classes; give classifier.labels, a file of one name per line")
    return tuple(re.sub(r"^\d+\.", "", label).replace("_", " ").strip() for label in labels)


def _preparation(key: str, processor: Any) -> tuple[int, Sequence[float], Sequence[float], str]:
    """Side in pixels, mean, std and interpolation. Raises UserError for pictures that are prepared in another way."""
    size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
    sides = {size[name] for name in ("height", "width", "shortest_edge") if size.get(name)}
    if len(sides) != 1:
        raise UserError(f"{key}: takes pictures of size {dict(size)}; only square ones are allowed")
    if not processor.do_rescale or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise UserError(f"{key}: rescale_factor={processor.rescale_factor}; allowed is 1/255, with do_rescale")
    if (resample := int(processor.resample)) not in RESAMPLE:
        raise UserError(f"{key}: resample={resample}; allowed are 2 (bilinear) and 3 (bicubic)")
    plain = ([0.0] * 3, [1.0] * 3)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else plain
    return sides.pop(), mean, std, RESAMPLE[resample]
