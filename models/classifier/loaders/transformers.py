"""Image classifiers of transformers, from folders and from the local cache of the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from classifier_lens.models.classifier.image_classifier import ImageClassifier, forward_transformers
from classifier_lens.models.classifier.loaders.class_names import check_class_order, read_labels
from classifier_lens.models.classifier.preprocessing import preprocess_images
from classifier_lens.models.hub import as_user_error, load_frozen, local_folder
from classifier_lens.runner.types import UserError

RESAMPLE_NAMES = {2: "bilinear", 3: "bicubic"}  # `resample` in preprocessor_config.json, numbers of Pillow's filters

# Options of processors that are supported or not used.
KNOWN_OPTIONS = ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb", "rescale_factor")
PREPROCESSING_TOLERANCE = 1e-2  # allowed difference between preprocessed images, relative to the largest value


def transformers_classifier(
    path: str, revision: str | None, labels: str | Sequence[str] | None, domain: str | None, output: str | None = None
) -> ImageClassifier:
    """An image classifier of transformers, with the size, mean, std and interpolation of its preprocessor_config.json.

    Images are not cropped: the whole image is resized to the size of the crop.

    Args:
        path: a folder with config.json, preprocessor_config.json and weights, or a hub id in the local cache.
        revision: commit of a hub id, None for the newest.
        labels: a text file with one name per line, or the names; None for those in config.json, without their numbers
            and underscores.
        output: type of the outputs, one of `models.classifier.logits.OUTPUT_CONVERTERS`, None for logits.

    Raises:
        UserError: the weights are missing, or the processor prepares images in an unsupported way.
    """
    key = f"classifier.path={path}"
    folder = local_folder(key, path, revision)
    with as_user_error(key):
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    network = load_frozen(key, folder, AutoModelForImageClassification, torch.float32)
    names = _config_labels(key, network.config.id2label) if labels is None else read_labels(labels)
    check_class_order(key, {"id2label": network.config.id2label}, names)
    size, mean, std, interpolation = _preprocessing(key, processor)
    _check_preprocessing(key, processor, size, mean, std)
    return ImageClassifier(
        network, names, size, mean, std, interpolation, domain, forward_transformers, f"{key} classifier.labels", output
    )


def _config_labels(key: str, id2label: dict[int, str]) -> tuple[str, ...]:
    """The class names of a configuration as plain words: `026.Bronzed_Cowbird` becomes `Bronzed Cowbird`.

    Raises UserError if it has none.
    """
    labels = tuple(id2label[number] for number in sorted(id2label))
    if all(label == f"LABEL_{number}" for number, label in enumerate(labels)):
        raise UserError(f"{key}: its config.json has no class names; give a file of them by classifier.labels")
    return tuple(re.sub(r"^\d+\.", "", label).replace("_", " ").strip() for label in labels)


def _preprocessing(key: str, processor: Any) -> tuple[int, Sequence[float], Sequence[float], str]:
    """Side in pixels, mean, std and interpolation. Raises UserError for a processor that is not supported."""
    if not getattr(processor, "size", None):
        raise UserError(
            f"{key}: its {type(processor).__name__} has no size of the images; for a network of timm use "
            "classifier=timm classifier.checkpoint=<its file of weights>"
        )
    size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
    sides = {size[name] for name in ("height", "width", "shortest_edge") if size.get(name)}
    if len(sides) != 1:
        raise UserError(f"{key}: takes images of size {dict(size)}; only square images are supported")
    if not processor.do_rescale or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise UserError(f"{key}: rescale_factor={processor.rescale_factor}; allowed is 1/255, with do_rescale")
    if (resample := int(processor.resample)) not in RESAMPLE_NAMES:
        raise UserError(f"{key}: resample={resample}; allowed are 2 (bilinear) and 3 (bicubic)")
    identity = ([0.0] * 3, [1.0] * 3)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else identity
    return sides.pop(), mean, std, RESAMPLE_NAMES[resample]


def _check_preprocessing(key: str, processor: Any, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises UserError, which lists the options of the processor, if it prepares an image of the network's size
    differently from `preprocess_images`, for example with another order of the channels."""
    image = torch.randint(256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
    with as_user_error(key):
        expected = processor(image, **settings)["pixel_values"].float()
    actual = preprocess_images(
        image[None] / 255, size, "bilinear", *(torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    )
    has_same_shape = expected.shape == actual.shape
    if has_same_shape and (expected - actual).abs().max() <= PREPROCESSING_TOLERANCE * actual.abs().max():
        return
    options = {name: value for name, value in processor.to_dict().items() if re.match(r"do_|include_|rescale_", name)}
    active = [f"{name}={value}" for name, value in sorted(options.items()) if value]
    unsupported = ", ".join(option for option in active if option.split("=")[0] not in KNOWN_OPTIONS)
    raise UserError(
        f"{key}: its {type(processor).__name__} does more than resizing, rescaling by 1/255 and normalizing: "
        f"{unsupported or ', '.join(active)}; such networks are not supported"
    )
