"""The sources of the weights that a run loads, by its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import timm

from classifier_lens.scripts.weights.sources import (
    CLASSIFIER_FILES,
    FP16_PIPELINE_FILES,
    NETWORK_FILES,
    PIPELINE_FILES,
    SOURCES,
    TIMM_FILES,
    TOKENIZER_FILES,
    HubRepository,
    Source,
    WeightFile,
    hub_repository,
    torchvision_file,
)


def required_sources(config: Mapping[str, Any]) -> list[Source]:
    """The sources that the parts of a run load and this repository does not ship, without repetitions, in the order of
    the configuration.

    config: resolved, of `runner.configuration.compose.compose_config`; parts to which no other part refers, such as the
    rival of another task, are not loaded.
    """
    parts = [config[key] for key in COMPONENTS if key in config]
    return list(dict.fromkeys(source for part in parts for node in _nodes(part) for source in _of_node(node)))


COMPONENTS = ("generator", "classifier", "data", "task", "parametrization", "safety_checker")


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping with a `_target_`, at any depth."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield value
        for inner in value.values():
            yield from _nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner)


def _of_node(node: Mapping[str, Any]) -> list[Source]:
    """The sources of one part."""
    loader = LOADERS.get(node["_target_"])
    return [] if loader is None else loader(node)


def _hub(path: str | None, revision: str | None, files: tuple[str, ...], used_by: str) -> list[Source]:
    """A hub repository, unless the path is None or a folder."""
    if path is None or Path(path).expanduser().exists():
        return []
    return [hub_repository(path, revision, files, used_by)]


def _pipeline(node: Mapping[str, Any]) -> list[Source]:
    sources = _hub(node["path"], node["revision"], PIPELINE_FILES, "generator.path")
    if node["variant"] == "fp16":
        sources = [
            replace(source, files=FP16_PIPELINE_FILES) for source in sources if isinstance(source, HubRepository)
        ]
    unet = _hub(node["unet"], None, PIPELINE_FILES, "generator.unet")
    return [*sources, *unet, *_hub(node["lora"], None, NETWORK_FILES, "generator.lora")]


def _timm(node: Mapping[str, Any]) -> list[Source]:
    if node["checkpoint"] is not None or not node["pretrained"]:
        return []
    config = timm.get_pretrained_cfg(node["name"], allow_unregistered=False)
    return _hub(config and config.hf_hub_id, node["revision"], TIMM_FILES, f"classifier.name={node['name']}")


def _torchvision(node: Mapping[str, Any]) -> list[Source]:
    return [] if node["checkpoint"] is not None else [torchvision_file(node["name"], node["weights"])]


def _transformers(node: Mapping[str, Any]) -> list[Source]:
    return _hub(node["path"], node["revision"], CLASSIFIER_FILES, "classifier.path")


def _open_clip(node: Mapping[str, Any]) -> list[Source]:
    if node["pretrained"] is None or Path(node["pretrained"]).exists():
        return []
    config = open_clip.get_pretrained_cfg(node["name"], node["pretrained"])
    repository = config.get("hf_hub", "").rstrip("/")
    tokenizer_name = (open_clip.get_model_config(node["name"]) or {}).get("text_cfg", {}).get("hf_tokenizer_name")
    network = _hub(repository or None, node["revision"], NETWORK_FILES, f"clip.name={node['name']}")
    return [*network, *_hub(tokenizer_name, None, TOKENIZER_FILES, f"the tokenizer of clip.name={node['name']}")]


def _network(node: Mapping[str, Any]) -> list[Source]:
    sources = _hub(node["path"], node["revision"], NETWORK_FILES, node["_target_"])
    return [*sources, *_hub(node.get("detector"), node.get("detector_revision"), NETWORK_FILES, node["_target_"])]


def _cifar10_checkpoint(node: Mapping[str, Any]) -> list[Source]:
    return [SOURCES[f"cifar10_resnet{node['depth']}"]]


def _grounded_sam_files(node: Mapping[str, Any]) -> list[Source]:
    paths = (Path(node["detector_weights"]), Path(node["sam_weights"]))
    files = [source for source in SOURCES.values() if isinstance(source, WeightFile) and source.path in paths]
    return [*files, *_hub(node["text_encoder"], node["text_encoder_revision"], NETWORK_FILES, node["_target_"])]


LOADERS: dict[str, Callable[[Mapping[str, Any]], list[Source]]] = {
    "classifier_lens.models.generator.latent_diffusion.load": _pipeline,
    "classifier_lens.models.classifier.loaders.timm.timm_classifier": _timm,
    "classifier_lens.models.classifier.loaders.torchvision.torchvision_classifier": _torchvision,
    "classifier_lens.models.classifier.loaders.transformers.transformers_classifier": _transformers,
    "classifier_lens.models.classifier.loaders.cifar10.cifar10_resnet": _cifar10_checkpoint,
    "classifier_lens.models.clip.load_clip": _open_clip,
    "classifier_lens.models.clip.zero_shot_classifier": lambda node: _open_clip(node["clip"]),
    "classifier_lens.models.segmenter.clipseg.load": _network,
    "classifier_lens.models.segmenter.sam.load": _network,
    "classifier_lens.models.segmenter.grounded_sam.load": _network,
    "classifier_lens.models.segmenter.grounded_sam_original.load": _grounded_sam_files,
    "classifier_lens.models.captioner.vision_language_model.load": _network,
    "classifier_lens.models.safety_checker.load": _network,
}
