"""Image classifiers in transformers' layout, from folders with random weights."""

from __future__ import annotations

import json
import re
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    CLIPConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from classifier_lens.models.classifier.loaders.transformers import _preprocessing, transformers_classifier
from classifier_lens.runner.types import UserError

CUB = ["026.Bronzed_Cowbird", "053.Western_Grebe", "055.Evening_Grosbeak"]
NAMES = ("Bronzed Cowbird", "Western Grebe", "Evening Grosbeak")
# As networks of 2021 have it, whose size is one number.
OLD = {
    "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2, "size": 32,
}  # fmt: skip
NEW = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.4, 0.3],
    "image_processor_type": "ViTImageProcessor", "image_std": [0.5, 0.6, 0.7], "resample": 3,
    "rescale_factor": 1 / 255, "size": {"height": 32, "width": 32},
}  # fmt: skip


def labelled(names: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def write_vit(folder: Path, prepared: dict[str, Any], names: list[str]) -> Path:
    """A folder in the hub's layout: config.json, model.safetensors and preprocessor_config.json."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        **labelled(names),
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    return folder


def make_images(size: int) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255


@pytest.mark.parametrize(("prepared", "interpolation"), [(OLD, "bilinear"), (NEW, "bicubic")])
def test_outputs_are_those_of_transformers(tmp_path: Path, prepared: dict[str, Any], interpolation: str) -> None:
    folder = write_vit(tmp_path, prepared, CUB)
    classifier = transformers_classifier(str(folder), None, None, "cub")
    network = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    for size in (32, 100):
        eight_bit = [image for image in make_images(size).mul(255).byte()]
        pixel_values = processor(eight_bit, return_tensors="pt").pixel_values
        with torch.no_grad():
            torch.testing.assert_close(
                classifier.preprocess(make_images(size)), pixel_values, atol=2 / 255 / 0.5, rtol=0
            )
            torch.testing.assert_close(
                classifier(make_images(size)).logits, network(pixel_values).logits, atol=1e-2, rtol=0
            )
    assert (classifier.labels, classifier.domain) == (NAMES, "cub")
    assert (classifier.size, classifier.interpolation) == (32, interpolation)
    assert classifier.head is not None and classifier.cam_module is not None


def test_a_network_of_convolutions_with_a_crop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", **labelled(CUB))
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    prepared = {
        "do_center_crop": True, "crop_size": 28, "feature_extractor_type": "DeiTFeatureExtractor", "resample": 3,
        "do_normalize": False, "do_resize": True, "size": 32,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepared))
    classifier = transformers_classifier(str(tmp_path), None, ["a", "b", "c"], None)
    network = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(classifier(make_images(28)).logits, network(make_images(28)).logits)
    assert classifier.size == 28 and classifier.labels == ("a", "b", "c") and classifier.head is not None


def test_weights_of_torch_save_are_read_without_running_code(tmp_path: Path) -> None:
    folder = write_vit(tmp_path / "a", OLD, CUB)
    plain = transformers_classifier(str(folder), None, None, "cub")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert transformers_classifier(str(folder), None, None, "cub").digest == plain.digest
    torch.save(state | {"code": Namespace()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="contains code, which is never run") as caught:
        transformers_classifier(str(folder), None, None, "cub")
    assert "\n" not in str(caught.value)


def test_labels_in_another_order_than_in_the_configuration_are_refused(tmp_path: Path) -> None:
    folder = write_vit(tmp_path, OLD, ["crab", "shark", "viaduct"])
    with pytest.raises(UserError, match="output 0 is crab by its id2label, but shark by classifier.labels"):
        transformers_classifier(str(folder), None, ["shark", "crab", "viaduct"], None)


def test_labels_from_a_file(tmp_path: Path) -> None:
    folder = write_vit(tmp_path / "a", OLD, ["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.raises(UserError, match=r"config\.json has no class names; give a file of them by classifier\.labels"):
        transformers_classifier(str(folder), None, None, None)
    (tmp_path / "names.txt").write_text("crab\nshark\nviaduct\n")
    assert transformers_classifier(str(folder), None, str(tmp_path / "names.txt"), None).labels[2] == "viaduct"
    with pytest.raises(UserError, match="output size 3 does not match its 2 labels"):
        transformers_classifier(str(folder), None, ["a", "b"], None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"height": 32, "width": 48}}, "only square images are supported"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor=0.00784"),
        ({"do_rescale": False}, "allowed is 1/255"),
        ({"resample": 0}, "resample=0; allowed are 2 (bilinear) and 3 (bicubic)"),
    ],
)
def test_other_preprocessing_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write_vit(tmp_path, NEW | changes, CUB)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        transformers_classifier(str(folder), None, None, "cub")
    assert f"classifier.path={folder}" in str(caught.value) and "\n" not in str(caught.value)


# By processor: what it does beside resizing, rescaling and normalizing, and whether images come out as ours then.
PROCESSORS: list[tuple[str, dict[str, Any], str | None]] = [
    (
        "MobileViTImageProcessor",
        {"do_normalize": False, "do_center_crop": False, "do_flip_channel_order": True},
        "do_flip_channel_order=True",
    ),
    ("MobileViTImageProcessor", {"do_normalize": False, "do_center_crop": False, "do_flip_channel_order": False}, None),
    ("EfficientNetImageProcessor", {"include_top": True}, "include_top=True"),
    ("EfficientNetImageProcessor", {"include_top": False, "rescale_offset": False}, None),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}, None),
    ("DeiTImageProcessor", {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, None),
]


@pytest.mark.parametrize(("kind", "changes", "named"), PROCESSORS)
def test_further_options_of_a_processor_are_supported_or_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], named: str | None
) -> None:
    folder = write_vit(tmp_path, NEW | {"image_processor_type": kind} | changes, CUB)
    if named is None:
        assert transformers_classifier(str(folder), None, None, "cub").size == 32
        return
    with pytest.raises(UserError, match=f"its {kind}.* does more than resizing.*{named}") as caught:
        transformers_classifier(str(folder), None, None, "cub")
    assert "\n" not in str(caught.value)


def test_for_a_folder_of_timm_the_right_loader_is_named(tmp_path: Path) -> None:
    folder = write_vit(tmp_path, NEW, CUB)
    processor = Namespace(size=None)
    with pytest.raises(UserError, match="Namespace has no size of the images; for a network of timm use"):
        _preprocessing(f"classifier.path={folder}", processor)


def test_wrong_weights_and_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_vit(tmp_path / "whole", OLD, CUB)
    for name in ("incomplete", "bare", "other", "empty"):
        shutil.copytree(whole, tmp_path / name)
    state = load_file(whole / "model.safetensors")
    state.pop("classifier.bias")
    save_file(state, tmp_path / "incomplete" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    CLIPConfig().save_pretrained(tmp_path / "other")
    (tmp_path / "empty" / "model.safetensors").unlink()
    for path, message in (
        ("PwNzDust/vit_cub", "fetch_weights.py fetch hub/PwNzDust/vit_cub"),
        (str(tmp_path / "incomplete"), "1 weights are missing, such as classifier.bias"),
        (str(tmp_path / "bare"), "cannot be loaded"),
        (str(tmp_path / "other"), "cannot be loaded|weights are missing"),
        (str(tmp_path / "empty"), "cannot be loaded"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            transformers_classifier(path, None, None, "cub")
        assert str(caught.value).startswith(f"classifier.path={path}") and "\n" not in str(caught.value)
