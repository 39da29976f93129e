"""CLIP models (Radford et al., 2021): pictures and texts as unit vectors of one space, and zero-shot classifiers.

A model comes from open_clip, by name and weights or as a folder in its layout. It is frozen and gradients reach the
image. Errors that the user can put right are UserErrors of one line.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained_from_hf
from safetensors import SafetensorError
from torch import Tensor, nn

from classifier_lens.models.classifier.image_classifier import ImageClassifier, network_digest, preprocess_images
from classifier_lens.models.classifier.loaders.class_names import read_labels
from classifier_lens.models.classifier.loaders.shipped import SHIPPED_FOLDER
from classifier_lens.models.hub import find_cached_file
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.configuration.value_ranges import Names, Positive
from classifier_lens.runner.types import UserError, first_line

Tokenize = Callable[[list[str]], Tensor]

TEXT_BATCH_SIZE = 256


class Clip(nn.Module):
    """A frozen CLIP model with its preprocessing and its tokenizer; an `Embedder`.

    error_prefix: the key and value that errors point at, e.g. `clip.name=ViT-B-16`; size: side in pixels of what the
    network sees; interpolation: how pictures get there; digest: SHA-256 of the weights; fingerprint: of them and of how
    pictures are prepared; logit_scale: what its training multiplied the cosine similarities by."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, tokenize: Tokenize, error_prefix: str) -> None:
        """Freeze an open_clip model, which knows its preprocessing. Raises UserError if it sees no square pictures."""
        super().__init__()
        self.model, self.tokenize, self.error_prefix = model.requires_grad_(False).eval(), tokenize, error_prefix
        seen = model.visual.preprocess_cfg
        sides = {seen["size"]} if isinstance(seen["size"], int) else set(seen["size"])
        if len(sides) != 1:
            raise UserError(f"{error_prefix}: takes pictures of size {seen['size']}; only square ones are allowed")
        self.size: int = sides.pop()
        self.interpolation = "bilinear" if seen["interpolation"] == "bilinear" else "bicubic"
        self.register_buffer("mean", torch.tensor(seen["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(seen["std"]).view(1, 3, 1, 1), persistent=False)
        self.digest = network_digest(model)
        self.fingerprint = repr((self.digest, self.size, tuple(seen["mean"]), tuple(seen["std"]), self.interpolation))
        self.logit_scale: float = model.logit_scale.detach().float().exp().item()

    def embed_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors, on the model's device, of images in [0, 1] of any size, resized with antialiasing and without a
        crop."""
        images = images.to(self.mean.device)
        return self.embed_preprocessed(preprocess_images(images, self.size, self.interpolation, self.mean, self.std))

    def embed_preprocessed(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Unit vectors, in float32, of images that are resized and normalised already."""
        return F.normalize(self.model.encode_image(images).float(), dim=1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors of texts, in float32; what does not fit the model's length is cut off."""
        tokens = self.tokenize(list(texts)).to(self.mean.device)
        parts = [self.model.encode_text(part).float() for part in tokens.split(TEXT_BATCH_SIZE)]
        return F.normalize(torch.cat(parts), dim=1)

    def train(self, mode: bool = True) -> Clip:
        """Stays in evaluation mode, whatever module it becomes part of."""
        return super().train(False)


# --- where models come from ----------------------------------------------------------------------------------


def load_clip(name: str, pretrained: str | None, revision: str | None) -> Clip:
    """A CLIP model of open_clip.

    name: open_clip's, e.g. ViT-B-16; or a folder in open_clip's layout (`open_clip_config.json` beside the weights):
    a name under models/pretrained/classifiers, or a path;
    pretrained: of a name, open_clip's tag of its weights or a file that holds them; of a folder, None;
    revision: commit of the hub's repository that a tag stands for, None for the newest.
    """
    key = f"clip.name={name}"
    if name in open_clip.list_models():
        return _named(name, pretrained, revision)
    folder = SHIPPED_FOLDER / name if (SHIPPED_FOLDER / name).is_dir() else Path(name)
    if not (folder / "open_clip_config.json").is_file():
        near = difflib.get_close_matches(name, [*open_clip.list_models(), *_shipped()], 5, 0.4)
        raise UserError(
            f"{key}: neither a model of open_clip {open_clip.__version__} nor a folder with open_clip_config.json; "
            f"close ones: {', '.join(near) or 'none'}; shipped are {', '.join(_shipped())}"
        )
    if pretrained is not None:
        raise UserError(f"clip.pretrained={pretrained}: {key} is a folder with weights of its own; allowed is null")
    return _create(key, f"local-dir:{folder}", None, {})


def _shipped() -> list[str]:
    return sorted(path.parent.name for path in SHIPPED_FOLDER.glob("*/open_clip_config.json"))


def _named(name: str, pretrained: str | None, revision: str | None) -> Clip:
    """A model of open_clip's list with the weights of a tag or a file."""
    key = f"clip.name={name} clip.pretrained={pretrained}"
    if tokenizer := open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name"):
        find_cached_file(f"{key}: its tokenizer", tokenizer, ("tokenizer.json", "tokenizer_config.json"), None)
    if pretrained is not None and Path(pretrained).is_file():
        return _create(key, name, pretrained, {})
    if pretrained is None or not open_clip.is_pretrained_cfg(name, pretrained):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(f"{key}: it needs weights; allowed are a file and open_clip's tags: {tags}")
    settings = open_clip.get_pretrained_cfg(name, pretrained)
    if not (source := settings.get("hf_hub")):
        return _create(key, name, pretrained, {})
    repository, _, file = source.rpartition("/")
    files = [file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    try:
        weights = find_cached_file(f"{key}: its file of weights", repository, files, revision)
        weights = weights or download_pretrained_from_hf(repository, file or None, revision)
    except OSError as error:
        raise UserError(f"{key}: {first_line(error)}") from error
    return _create(key, name, weights, settings)


def _create(key: str, source: str, weights: str | None, settings: dict[str, Any]) -> Clip:
    """The model and its tokenizer. Raises UserError if the weights are missing, unreadable or of another model.

    settings: what open_clip records for the weights: preprocessing, and whether GELU is the quick one.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            model = open_clip.create_model(
                source, weights, force_preprocess_cfg=settings, force_quick_gelu=settings.get("quick_gelu", False),
                require_pretrained=True,
            )  # fmt: skip
        tokenize = open_clip.get_tokenizer(source)
    except (OSError, EOFError, LookupError, TypeError, ValueError, RuntimeError, *_UNREADABLE) as error:
        raise UserError(f"{key}: cannot be loaded: {first_line(error)}") from error
    return Clip(model, tokenize, key)


_UNREADABLE = (SafetensorError, pickle.UnpicklingError)


# --- zero-shot classifiers -----------------------------------------------------------------------------------


class ZeroShotNetwork(nn.Module):
    """A CLIP model with the texts of the classes as its last linear layer, without a bias."""

    def __init__(self, clip: Clip, weight: Float[Tensor, "k d"]) -> None:
        super().__init__()
        self.clip = clip
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.head.weight = nn.Parameter(weight)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b d"]]:
        """Prepared images -> logits, and the unit vectors that they are linear in."""
        features = self.clip.embed_preprocessed(images)
        return self.head(features), features


class ZeroShotClassifier(ImageClassifier):
    """A CLIP model as an image classifier: the classes are what their names say.

    Its features are the images' unit vectors, its head the scaled vectors of the classes.
    """

    def __init__(self, clip: Clip, labels: Sequence[str], weight: Float[Tensor, "k d"], domain: str | None) -> None:
        """weight: unit vectors of the classes times the scale."""
        mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
        network = ZeroShotNetwork(clip, weight)
        super().__init__(
            network, labels, clip.size, mean, std, clip.interpolation, domain, forward_zero_shot, clip.error_prefix
        )

    @property
    def clip(self) -> Clip:
        """The model itself, for pictures and other texts."""
        return self.network.clip


def forward_zero_shot(network: ZeroShotNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the unit vectors of the images."""
    return network(images)


def zero_shot_classifier(
    clip: Clip, labels: str | Names, class_names: str | Names | None, templates: Names,
    logit_scale: Positive | None, domain: str | None, cache: TensorCache,
) -> ZeroShotClassifier:  # fmt: skip
    """A classifier that compares a picture with descriptions of its classes (Radford et al., 2021, Section 3.1.4).

    labels: `imagenet`, a text file of one name per line, or the names; class_names: the words that stand for the labels
    in the descriptions, in their order, given as labels are (a file may lie under models/pretrained/classifiers); None
    for the labels themselves; templates: descriptions with `{}` in the name's place; logit_scale: of the similarities,
    None for the model's own; cache: keeps the vectors of the classes."""
    labels = read_labels(labels)
    words = labels if class_names is None else _read_names(class_names)
    if len(words) != len(labels):
        raise UserError(
            f"classifier.class_names={class_names}: {len(words)} names for {len(labels)} labels; one each is needed"
        )
    if repeated := sorted({word for word in words if words.count(word) > 1}):
        raise UserError(
            f"classifier.class_names={class_names}: names must differ, but these stand there twice: {repeated}"
        )
    if not templates or (wrong := [template for template in templates if "{}" not in template]):
        said = f"{wrong[0]!r} has no {{}} for the name" if templates else "at least one is needed"
        raise UserError(f"classifier.templates={list(templates)}: {said}")
    if logit_scale is not None and logit_scale <= 0:
        raise UserError(f"classifier.logit_scale={logit_scale}: allowed are null and numbers above 0")
    weight = class_embeddings(clip, words, templates, cache) * (
        clip.logit_scale if logit_scale is None else logit_scale
    )
    return ZeroShotClassifier(clip, labels, weight, domain)


def _read_names(names: str | Sequence[str]) -> tuple[str, ...]:
    return read_labels(
        str(SHIPPED_FOLDER / names) if isinstance(names, str) and (SHIPPED_FOLDER / names).is_file() else names
    )


def class_embeddings(
    clip: Clip, class_names: Sequence[str], templates: Sequence[str], cache: TensorCache
) -> Float[Tensor, "k d"]:
    """Per name, the unit vector of the mean of its descriptions' unit vectors; kept in `cache`.

    The tokens are part of the key because the digest of the weights does not cover the tokenizer.
    """
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    key = cache.key(
        "class vectors", clip.error_prefix, clip.digest, list(class_names), list(templates), clip.tokenize(texts)
    )
    if (found := cache.load([key])) is None:
        vectors = clip.embed_texts(texts).unflatten(0, (len(class_names), len(templates))).mean(1)
        found = {"vectors": F.normalize(vectors, dim=1)[None]}
        cache.save([key], **found)
    return found["vectors"][0].to(clip.mean.device)
