"""Where classifiers come from: one loader per source of weights, each named by a YAML in `conf/classifier/`.

Every loader returns a frozen, checked `ImageClassifier` and raises UserError, in one line, for what the user can
put right: a missing file, an unknown name, labels that do not fit.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from jaxtyping import Float
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.cifar_resnet import DEPTHS, CifarResNet
from models.classifier import ImageClassifier, ask_logits, ask_timm
from models.hub import NEEDS_NONE, in_cache
from runner.types import UserError, first_line

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "models" / "pretrained" / "classifiers"

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Two pairs of classes share a name in open_clip's list; one of each pair takes WordNet's other name for it.
IMAGENET_RENAMED = {744: "projectile", 836: "sunglass"}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- timm ----------------------------------------------------------------------------------------------------


def timm_classifier(
    name: str, pretrained: bool, revision: str | None, checkpoint: str | None, labels: str | Sequence[str], domain: str
) -> ImageClassifier:
    """Any timm model, with the preprocessing that timm records for it.

    name: timm's, with or without a tag; pretrained: whether to load timm's weights (from its cache or the hub);
    revision: commit of the hub's repository, None for the newest;
    checkpoint: a file of weights to load instead (safetensors or a `torch.save`d state dict), one output per label;
    labels: `imagenet`, a text file of one name per line, or the names.
    """
    key = f"classifier.name={name}"
    if not timm.is_model(name.split(".")[0]):
        close = ", ".join(difflib.get_close_matches(name.split(".")[0], timm.list_models(), 5)) or "none"
        raise UserError(f"{key}: timm {timm.__version__} has no such model; close ones: {close}")
    names = read_labels(labels)
    settings: dict[str, Any] = {"num_classes": len(names)} if checkpoint else {}
    try:
        if pretrained and checkpoint is None:
            settings = _pinned(key, name, revision)
        with torch.random.fork_rng(devices=[]):  # random weights are the same in every run
            torch.manual_seed(0)
            network = timm.create_model(name, pretrained=pretrained and checkpoint is None, **settings)
    except _HUB_ERRORS as error:
        raise _missing_hub(key, name, revision) from error
    except RuntimeError as error:  # an unknown tag, or no weights under this one
        raise UserError(f"{key}: {first_line(error)}") from error
    if checkpoint is not None:
        _load_into(network, checkpoint)
    data = timm.data.resolve_model_data_config(network)
    _, height, width = data["input_size"]
    if height != width:
        raise UserError(f"{key}: takes {height} x {width} pictures; only square ones are allowed")
    interpolation = "bicubic" if data["interpolation"] == "bicubic" else "bilinear"
    return ImageClassifier(
        network, names, height, data["mean"], data["std"], interpolation, domain, ask_timm, f"{key} classifier.labels"
    )


_HUB_ERRORS = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, URLError)


def _pinned(key: str, name: str, revision: str | None) -> dict[str, Any]:
    """Settings that make timm load its weights at `revision`, once these are known to be cached or within reach.

    Raises UserError where they are not, at once and not after minutes of retries.
    """
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if not config or not config.hf_hub_id:
        return {}
    in_cache(f"{key}: its file of weights", config.hf_hub_id, ("model.safetensors", "pytorch_model.bin"), revision)
    return {"pretrained_cfg_overlay": {"hf_hub_id": f"{config.hf_hub_id}@{revision}"}} if revision else {}


def _missing_hub(key: str, name: str, revision: str | None) -> UserError:
    source = f"timm/{name}@{revision}" if revision else f"timm/{name}"
    return UserError(
        f"{key}: its weights are not in the local cache and the hub cannot be reached; with a network, "
        f"`python scripts/fetch_weights.py fetch {source}` gets them; {NEEDS_NONE}"
    )


def _load_into(network: nn.Module, checkpoint: str) -> None:
    """Load weights from a file. Raises UserError if it is missing, unreadable or of another architecture."""
    path = Path(checkpoint)
    key = f"classifier.checkpoint={checkpoint}"
    if not path.is_file():
        raise UserError(f"{key}: no such file; give a .safetensors file or a torch.save'd state dict; {NEEDS_NONE}")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        network.load_state_dict(state.get("state_dict", state))
    except (SafetensorError, pickle.UnpicklingError, EOFError, IndexError, RuntimeError) as error:
        raise UserError(f"{key}: cannot be loaded: {first_line(error)}") from error


def read_labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    """Class names from `imagenet`, from a text file of one name per line, or as they are given."""
    if not isinstance(labels, str):
        return tuple(labels)
    if labels == "imagenet":
        return imagenet_labels()
    try:
        lines = Path(labels).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(
            f"classifier.labels={labels}: {reason}; allowed are `imagenet` or a file of one name per line"
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 names of ImageNet-1k, curated by open_clip's authors; no two are equal."""
    names = list(IMAGENET_CLASSNAMES)
    for index, name in IMAGENET_RENAMED.items():
        names[index] = name
    return tuple(names)


# --- folders of this repository ------------------------------------------------------------------------------


def load_shipped(path: str | Path) -> ImageClassifier:
    """A classifier in a folder that scripts/train_classifier.py wrote: a name under models/pretrained/classifiers,
    or a path. An oracle's labels are `<head>: <name>`.
    """
    config, network = _read_folder(path)
    heads: dict[str, list[str]] = config["heads"]
    labels = (
        list(heads["class"]) if list(heads) == ["class"] else [f"{head}: {n}" for head, ns in heads.items() for n in ns]
    )
    return ImageClassifier(
        network, labels, config["size"], config["mean"], config["std"], config["interpolation"], config["domain"],
        ask_timm, f"classifier.path={path}",
    )  # fmt: skip


class Oracle:
    """A judge of rendered and generated pictures: reads several factors at once. Never explained, never optimised.

    heads: factor -> the names that the columns of its logits stand for, e.g. `prop` -> flowers, ..., none.
    """

    def __init__(self, classifier: ImageClassifier, heads: dict[str, tuple[str, ...]]) -> None:
        self.classifier, self.heads, self.digest = classifier, heads, classifier.digest

    def to(self, device: torch.device | str) -> Oracle:
        self.classifier.to(device)
        return self

    @torch.no_grad()
    def read(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """Images in [0, 1] -> logits (b, number of names) per factor."""
        logits = self.classifier(images).logits
        sizes = [len(names) for names in self.heads.values()]
        return dict(zip(self.heads, logits.split(sizes, dim=1), strict=True))

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """Images in [0, 1] -> the input of the last linear layer, for distances between sets of pictures."""
        features = self.classifier(images).features
        assert features is not None
        return features


def shipped_oracle(path: str | Path) -> Oracle:
    """An oracle by its name under models/pretrained/classifiers, or by a path."""
    heads = _read_folder(path)[0]["heads"]
    return Oracle(load_shipped(path), {head: tuple(names) for head, names in heads.items()})


def _read_folder(path: str | Path) -> tuple[dict[str, Any], nn.Module]:
    """config.json and the network with its weights, in float32. Raises UserError if a file is missing or broken."""
    folder = SHIPPED / path if (SHIPPED / path).is_dir() else Path(path)
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            here = ", ".join(sorted(p.parent.name for p in SHIPPED.glob("*/config.json")))
            raise UserError(
                f"classifier.path={path}: {folder / file} is not there; shipped are {here}, and "
                "`python scripts/train_classifier.py` trains others"
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


# --- published CIFAR-10 networks -----------------------------------------------------------------------------


def cifar10_resnet(path: str, depth: int, sha256: str) -> ImageClassifier:
    """A published CIFAR-10 ResNet (option A) of akamaster/pytorch_resnet_cifar10.

    path: the `.th` file, or the folder that holds `resnet<depth>-*.th`; sha256: what the file must hash to.
    """
    key = f"classifier.path={path}"
    file = Path(path)
    if file.is_dir():
        file = file / f"resnet{depth}-{sha256[:8]}.th"
    if not file.is_file():
        raise UserError(
            f"{key}: {file} is not there; `python scripts/fetch_weights.py fetch cifar10_resnet{depth}` gets it; "
            + NEEDS_NONE
        )
    if depth not in DEPTHS:
        raise UserError(f"classifier.depth={depth}: allowed are {', '.join(map(str, DEPTHS))}")
    data = file.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise UserError(f"{key}: SHA-256 of {file} is {found}, expected {sha256}; fetch it again")
    state = torch.load(io.BytesIO(data), "cpu", weights_only=True)["state_dict"]
    network = CifarResNet(depth)
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return ImageClassifier(
        network, CIFAR10_LABELS, 32, IMAGENET_MEAN, IMAGENET_STD, "bilinear", "cifar10", ask_cifar_resnet, key
    )


def ask_cifar_resnet(network: CifarResNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the pooled features that the linear layer reads."""
    features = network.features(images)
    return network.linear(features), features


# --- the user's own network ----------------------------------------------------------------------------------


def callable_classifier(
    target: str, labels: str | Sequence[str], size: int, mean: Sequence[float], std: Sequence[float],
    interpolation: str, domain: str | None,
) -> ImageClassifier:  # fmt: skip
    """The user's own network.

    target: `module:name` or `file.py:name` of a function or `torch.nn.Module` that maps normalised images
    (b, 3, size, size) to logits (b, k); a function without arguments is called once and returns such a network;
    labels: a text file of one name per line, or the names, in the order of the logits.
    """
    key = f"classifier.target={target}"
    network = _import(target, key)
    if not isinstance(network, nn.Module) and not inspect.signature(network).parameters:
        network = network()
    if not callable(network):
        raise UserError(f"{key}: gives a {type(network).__name__}, which cannot be called with images")
    return ImageClassifier(network, read_labels(labels), size, mean, std, interpolation, domain, ask_logits, key)


def _import(target: str, key: str) -> Callable[..., Any]:
    """The object that `target` names; modules are also looked for in the working folder."""
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise UserError(f"{key}: allowed are module:name and file.py:name")
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    except (ImportError, OSError, SyntaxError) as error:
        raise UserError(f"{key}: cannot import {place}: {error}") from error
    if not callable(found := getattr(module, name, None)):
        names = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise UserError(f"{key}: {place} has no callable {name}; it has {names or 'none'}")
    return found


def _import_module(name: str) -> ModuleType:
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
