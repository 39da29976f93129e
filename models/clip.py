"""CLIP models of open_clip (Radford et al., 2021): embeddings of images and texts, and zero-shot classifiers."""

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

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.models.classifier.loaders.class_names import read_labels
from classifier_lens.models.classifier.loaders.shipped import SHIPPED_FOLDER
from classifier_lens.models.classifier.preprocessing import preprocess_images
from classifier_lens.models.hub import find_cached_file
from classifier_lens.models.network_digest import network_digest
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.configuration.value_ranges import Names, Positive
from classifier_lens.runner.types import UserError, first_line

Tokenize = Callable[[list[str]], Tensor]

TEXT_BATCH_SIZE = 256
LOAD_ERRORS = (
    OSError, EOFError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError,
)  # fmt: skip


class Clip(nn.Module):
    """A frozen CLIP model with its preprocessing and tokenizer, an `Embedder`; images receive gradients.

    Attributes:
        error_prefix: key and value that begin error messages, e.g. `clip.name=ViT-B-16`.
        size: side of the network's input in pixels.
        interpolation: of the resizing to that size, bilinear or bicubic.
        digest: SHA-256 of the weights.
        fingerprint: the digest and the preprocessing.
        logit_scale: factor of the cosine similarities in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, tokenize: Tokenize, error_prefix: str) -> None:
        """Freeze an open_clip model. Raises UserError if its input is not square."""
        super().__init__()
        self.model, self.tokenize, self.error_prefix = model.requires_grad_(False).eval(), tokenize, error_prefix
        settings = model.visual.preprocess_cfg
        mean, std, size = settings["mean"], settings["std"], settings["size"]
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise UserError(f"{error_prefix}: takes images of size {size}; only square images are supported")
        self.size: int = sides.pop()
        self.interpolation = "bilinear" if settings["interpolation"] == "bilinear" else "bicubic"
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.digest = network_digest(model)
        self.fingerprint = repr((self.digest, self.size, tuple(mean), tuple(std), self.interpolation))
        self.logit_scale: float = model.logit_scale.detach().float().exp().item()

    def embed_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors, on the device of the model, of images in [0, 1] of any size; they are resized with antialiasing
        and not cropped."""
        images = images.to(self.mean.device)
        return self.embed_preprocessed(preprocess_images(images, self.size, self.interpolation, self.mean, self.std))

    def embed_preprocessed(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Unit vectors in float32 of images that are already resized and normalized."""
        return F.normalize(self.model.encode_image(images).float(), dim=1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors of texts in float32; texts are truncated to the context length of the model."""
        tokens = self.tokenize(list(texts)).to(self.mean.device)
        batches = [self.model.encode_text(batch).float() for batch in tokens.split(TEXT_BATCH_SIZE)]
        return F.normalize(torch.cat(batches), dim=1)

    def train(self, mode: bool = True) -> Clip:
        """Keep the evaluation mode, also as part of a module that is trained."""
        return super().train(False)


def load_clip(name: str, pretrained: str | None, revision: str | None) -> Clip:
    """A CLIP model of open_clip.

    Args:
        name: a model of open_clip, e.g. ViT-B-16; or a folder in open_clip's layout (`open_clip_config.json` beside the
            weights): a name under models/pretrained/classifiers, or a path.
        pretrained: for a model, open_clip's tag of its weights or a file with them; for a folder, None.
        revision: commit of the hub repository of a tag, None for the newest.
    """
    key = f"clip.name={name}"
    if name in open_clip.list_models():
        return _load_named_model(name, pretrained, revision)
    folder = SHIPPED_FOLDER / name if (SHIPPED_FOLDER / name).is_dir() else Path(name)
    if not (folder / "open_clip_config.json").is_file():
        similar_names = difflib.get_close_matches(name, [*open_clip.list_models(), *_shipped_models()], 5, 0.4)
        raise UserError(
            f"{key}: neither a model of open_clip {open_clip.__version__} nor a folder with open_clip_config.json; "
            f"nearest are {', '.join(similar_names) or 'none'}; shipped are {', '.join(_shipped_models())}"
        )
    if pretrained is not None:
        raise UserError(f"clip.pretrained={pretrained}: {key} is a folder that contains its weights; allowed is null")
    return _create(key, f"local-dir:{folder}", None, {})


def _shipped_models() -> list[str]:
    return sorted(path.parent.name for path in SHIPPED_FOLDER.glob("*/open_clip_config.json"))


def _load_named_model(name: str, pretrained: str | None, revision: str | None) -> Clip:
    """A model of open_clip with the weights of a tag or a file."""
    key = f"clip.name={name} clip.pretrained={pretrained}"
    if tokenizer := open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name"):
        find_cached_file(f"{key}: its tokenizer", tokenizer, ("tokenizer.json", "tokenizer_config.json"), None)
    if pretrained is not None and Path(pretrained).is_file():
        return _create(key, name, pretrained, {})
    if pretrained is None or not open_clip.is_pretrained_cfg(name, pretrained):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(f"{key}: no such weights; allowed are a file and open_clip's tags: {tags}")
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
    """The model with its tokenizer. Raises UserError if the weights are missing, unreadable or of another model.

    settings: open_clip's settings of the weights: preprocessing, and whether to use the approximate GELU.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            model = open_clip.create_model(
                source, weights, force_preprocess_cfg=settings, force_quick_gelu=settings.get("quick_gelu", False),
                require_pretrained=True,
            )  # fmt: skip
        tokenize = open_clip.get_tokenizer(source)
    except LOAD_ERRORS as error:
        raise UserError(f"{key}: cannot be loaded: {first_line(error)}") from error
    return Clip(model, tokenize, key)


class ZeroShotNetwork(nn.Module):
    """A CLIP image encoder, followed by a linear layer without bias whose rows are the embeddings of the classes."""

    def __init__(self, clip: Clip, weight: Float[Tensor, "k d"]) -> None:
        super().__init__()
        self.clip = clip
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.head.weight = nn.Parameter(weight)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b d"]]:
        """Preprocessed images to logits and the unit vectors from which they are computed."""
        features = self.clip.embed_preprocessed(images)
        return self.head(features), features


class ZeroShotClassifier(ImageClassifier):
    """A CLIP model as an image classifier; its features are the image embeddings, its head the class embeddings."""

    def __init__(self, clip: Clip, labels: Sequence[str], weight: Float[Tensor, "k d"], domain: str | None) -> None:
        """weight: class embeddings times the logit scale."""
        mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
        network = ZeroShotNetwork(clip, weight)
        super().__init__(
            network, labels, clip.size, mean, std, clip.interpolation, domain, forward_zero_shot, clip.error_prefix
        )

    @property
    def clip(self) -> Clip:
        """The CLIP model."""
        return self.network.clip


def forward_zero_shot(network: ZeroShotNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and image embeddings."""
    return network(images)


def zero_shot_classifier(
    clip: Clip, labels: str | Names, class_names: str | Names | None, templates: Names,
    logit_scale: Positive | None, domain: str | None, cache: TensorCache,
) -> ZeroShotClassifier:  # fmt: skip
    """A classifier by the similarity of images with class descriptions (Radford et al., 2021, Section 3.1.4).

    Args:
        labels: `imagenet`, a text file with one name per line, or the names.
        class_names: the names that the descriptions use, one per label: as `labels`, or the name of a file under
            models/pretrained/classifiers; None for the labels.
        templates: descriptions with `{}` in place of the class name.
        logit_scale: factor of the similarities, None for that of the model.
        cache: stores the class embeddings.
    """
    labels = read_labels(labels)
    names = labels if class_names is None else _read_class_names(class_names)
    _check_descriptions(labels, class_names, names, templates)
    if logit_scale is not None and logit_scale <= 0:
        raise UserError(f"classifier.logit_scale={logit_scale}: allowed are null and numbers above 0")
    scale = clip.logit_scale if logit_scale is None else logit_scale
    return ZeroShotClassifier(clip, labels, class_embeddings(clip, names, templates, cache) * scale, domain)


def _read_class_names(names: str | Sequence[str]) -> tuple[str, ...]:
    is_shipped = isinstance(names, str) and (SHIPPED_FOLDER / names).is_file()
    return read_labels(str(SHIPPED_FOLDER / str(names)) if is_shipped else names)


def _check_descriptions(labels: Sequence[str], option: object, names: Sequence[str], templates: Sequence[str]) -> None:
    """Raises UserError unless each label has a different name and each template a placeholder."""
    key = f"classifier.class_names={option}"
    if len(names) != len(labels):
        raise UserError(f"{key}: {len(names)} names for {len(labels)} labels; one per label is needed")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{key}: names must differ, but these occur more than once: {repeated}")
    if not templates:
        raise UserError(f"classifier.templates={list(templates)}: at least one is needed")
    if incomplete := [template for template in templates if "{}" not in template]:
        raise UserError(f"classifier.templates={list(templates)}: {incomplete[0]!r} has no {{}} for the name")


def class_embeddings(
    clip: Clip, class_names: Sequence[str], templates: Sequence[str], cache: TensorCache
) -> Float[Tensor, "k d"]:
    """For each name, the normalized mean of the unit vectors of its descriptions."""
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    key = cache.key(  # includes the tokens, because the digest of the weights does not cover the tokenizer
        "class vectors", clip.error_prefix, clip.digest, list(class_names), list(templates), clip.tokenize(texts)
    )
    if (cached := cache.load([key])) is None:
        vectors = clip.embed_texts(texts).unflatten(0, (len(class_names), len(templates))).mean(1)
        cached = {"vectors": F.normalize(vectors, dim=1)[None]}
        cache.save([key], **cached)
    return cached["vectors"][0].to(clip.mean.device)
