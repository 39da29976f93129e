"""Image classifiers in transformers' layout, from folders and from the hub's local cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from classifier_lens.models.classifier.image_classifier import ImageClassifier, forward_transformers, preprocess_images
from classifier_lens.models.classifier.loaders.class_names import check_class_order, read_labels
from classifier_lens.models.hub import as_user_error, load_frozen, local_folder
from classifier_lens.runner.types import UserError

# What preprocessor_config.json calls them, which are the numbers of Pillow's filters.
RESAMPLE_NAMES = {2: "bilinear", 3: "bicubic"}

# Options of a processor that do what we do, or are not used.
KNOWN_OPTIONS = ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb", "rescale_factor")
PREPROCESSING_TOLERANCE = 1e-2  # of the largest value: by how much prepared images may differ


def transformers_classifier(
    path: str, revision: str | None, labels: str | Sequence[str] | None, domain: str | None, output: str | None = None
) -> ImageClassifier:
    """An image classifier of transformers, with the size, mean, std and interpolation of its preprocessor_config.json.

    A crop that stands there is not made: the network sees the whole picture, resized to what the crop would leave.
    path: a folder with config.json, preprocessor_config.json and weights, or a hub id that is in the local cache;
    revision: of a hub id, its commit, None for the newest; labels: a text file of one name per line or the names, None
    for those that config.json has, without what numbers and joins them; output: what the network gives, one of
    `models.classifier.logits.OUTPUT_CONVERTERS`, None for logits. Raises UserError for images that are prepared in
    another way than here."""
    key = f"classifier.path={path}"
    folder = local_folder(key, path, revision)
    with as_user_error(key):
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    network = load_frozen(key, folder, AutoModelForImageClassification, torch.float32)
    names = _own_labels(key, network.config.id2label) if labels is None else read_labels(labels)
    check_class_order(key, {"id2label": network.config.id2label}, names)
    size, mean, std, interpolation = _preparation(key, processor)
    _check_preparation(key, processor, size, mean, std)
    return ImageClassifier(
        network, names, size, mean, std, interpolation, domain, forward_transformers, f"{key} classifier.labels", output
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
    if not getattr(processor, "size", None):
        kind, advice = type(processor).__name__, "a network of timm is given by classifier=timm classifier.checkpoint="
        raise UserError(f"{key}: its {kind} states no size of the images; {advice}<its file of weights>")
    size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
    sides = {size[name] for name in ("height", "width", "shortest_edge") if size.get(name)}
    if len(sides) != 1:
        raise UserError(f"{key}: takes pictures of size {dict(size)}; only square ones are allowed")
    if not processor.do_rescale or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise UserError(f"{key}: rescale_factor={processor.rescale_factor}; allowed is 1/255, with do_rescale")
    if (resample := int(processor.resample)) not in RESAMPLE_NAMES:
        raise UserError(f"{key}: resample={resample}; allowed are 2 (bilinear) and 3 (bicubic)")
    plain = ([0.0] * 3, [1.0] * 3)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else plain
    return sides.pop(), mean, std, RESAMPLE_NAMES[resample]


def _check_preparation(key: str, processor: Any, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises UserError if the processor makes something else of an image of the network's own size than we do, such as
    one with its channels in another order; the line names its options."""
    image = torch.randint(256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
    with as_user_error(key):
        theirs = processor(image, **settings)["pixel_values"].float()
    ours = preprocess_images(
        image[None] / 255, size, "bilinear", *(torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    )
    if theirs.shape == ours.shape and (theirs - ours).abs().max() <= PREPROCESSING_TOLERANCE * ours.abs().max():
        return
    told = processor.to_dict()
    known = [f"{name}={told[name]}" for name in sorted(told) if re.match(r"do_|include_|rescale_", name) and told[name]]
    differ = ", ".join(option for option in known if option.split("=")[0] not in KNOWN_OPTIONS)
    raise UserError(
        f"{key}: its {type(processor).__name__} prepares images in another way than resizing, rescaling by 1/255 and "
        f"normalizing: {differ or ', '.join(known)}; allowed are options that change nothing else"
    )
