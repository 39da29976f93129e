"""Classifiers and oracles that scripts/train/classifier.py trained, among them those that are shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from classifier_lens.models.classifier.image_classifier import ImageClassifier, forward_logits
from classifier_lens.runner.paths import PRETRAINED_FOLDER
from classifier_lens.runner.types import UserError, first_line

SHIPPED_FOLDER = PRETRAINED_FOLDER / "classifiers"


def load_shipped(path: str | Path) -> ImageClassifier:
    """A classifier that scripts/train/classifier.py trained; the labels of an oracle are `<head>: <name>`.

    path: the name of a folder under models/pretrained/classifiers, or a path.
    """
    config, network = _read_folder(path)
    heads: dict[str, list[str]] = config["heads"]
    labels = (
        list(heads["class"]) if list(heads) == ["class"] else [f"{head}: {n}" for head, ns in heads.items() for n in ns]
    )
    return ImageClassifier(
        network, labels, config["size"], config["mean"], config["std"], config["interpolation"], config["domain"],
        forward_logits, f"classifier.path={path}",
    )  # fmt: skip


class Oracle:
    """A classifier of several factors of rendered and generated images, for evaluation alone.

    heads: factor -> the names of the columns of its logits, e.g. `prop` -> flowers, ..., none.
    """

    def __init__(self, classifier: ImageClassifier, heads: dict[str, tuple[str, ...]]) -> None:
        self.classifier, self.heads, self.digest = classifier, heads, classifier.digest

    def to(self, device: torch.device | str) -> Oracle:
        self.classifier.to(device)
        return self

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """Logits (b, number of names) per factor, for images in [0, 1]."""
        logits = self.classifier(images).logits
        sizes = [len(names) for names in self.heads.values()]
        return dict(zip(self.heads, logits.split(sizes, dim=1), strict=True))

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """The input of the last linear layer for images in [0, 1], for distances between sets of images."""
        features = self.classifier(images).features
        assert features is not None
        return features


def load_oracle(path: str | Path) -> Oracle:
    """An oracle by its name under models/pretrained/classifiers, or by a path."""
    heads = _read_folder(path)[0]["heads"]
    return Oracle(load_shipped(path), {head: tuple(names) for head, names in heads.items()})


def _read_folder(path: str | Path) -> tuple[dict[str, Any], nn.Module]:
    """The content of config.json and the network in float32. Raises UserError if a file is missing or damaged."""
    folder = SHIPPED_FOLDER / path if (SHIPPED_FOLDER / path).is_dir() else Path(path)
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            shipped = ", ".join(sorted(p.parent.name for p in SHIPPED_FOLDER.glob("*/config.json")))
            raise UserError(
                f"classifier.path={path}: {folder / file} does not exist; shipped are {shipped}, and "
                "`python scripts/train/classifier.py` trains others"
            )
    try:
        config = json.loads((folder / "config.json").read_text())
        outputs = sum(len(names) for names in config["heads"].values())
        network = timm.create_model(config["architecture"], num_classes=outputs, **config["kwargs"])
        state = load_file(folder / "model.safetensors")
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except (json.JSONDecodeError, KeyError, SafetensorError, RuntimeError) as error:
        raise UserError(f"classifier.path={path}: cannot be loaded: {first_line(error)}") from error
    return config, network
