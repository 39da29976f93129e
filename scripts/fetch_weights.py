"""Get the published weights that this repository does not ship. `python run.py` alone needs none of them.

    python scripts/fetch_weights.py list
    python scripts/fetch_weights.py fetch cifar10_resnet20        # or timm/<any timm name>, hub/<owner>/<name>
    python scripts/fetch_weights.py check

Files come from where their authors publish them. The CIFAR-10 checkpoints go to $CIFAR10_RESNETS (or
../shared/data/cifar10), Grounded SAM's original files to $GROUNDED_SAM (or ../shared/data/grounded_sam), hub weights to
the hub's cache ($HF_HOME). What is pinned by SHA-256 is checked before it takes its name; what is pinned by revision is
checked by the hub client.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError

CIFAR10 = ("CIFAR10_RESNETS", "../shared/data/cifar10")
GROUNDED_SAM = ("GROUNDED_SAM", "../shared/data/grounded_sam")
CIFAR10_URL = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
# What Stable Diffusion's pipeline reads, without the copies in other formats.
PIPELINE_FILES = ("*.json", "*/*.json", "*/*.txt", "*/model.safetensors", "*/diffusion_pytorch_model.safetensors")
# What open_clip and transformers read, without the copies in other formats.
NETWORK_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.safetensors")
TIMM_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class File:
    """One file by address. place: an environment variable that names its folder, and the folder where it is not set;
    size: bytes; sha256: of its contents."""

    place: tuple[str, str]
    url: str
    size: int
    sha256: str
    licence: str
    used_by: str

    @property
    def path(self) -> Path:
        return Path(os.environ.get(*self.place)) / self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Repository:
    """A repository of the hub at one revision (None: its newest). size: bytes, about; files: patterns to take."""

    name: str
    revision: str | None
    files: tuple[str, ...]
    size: float
    licence: str
    used_by: str


def _cifar10(depth: int, size: int, sha256: str) -> File:
    url = f"{CIFAR10_URL}resnet{depth}-{sha256[:8]}.th"
    return File(CIFAR10, url, size, sha256, "BSD-2-Clause", f"classifier=cifar10_resnet{depth}")


def _grounded_sam(url: str, size: int, sha256: str, setting: str) -> File:
    return File(GROUNDED_SAM, url, size, sha256, "Apache-2.0", f"segmenter=grounded_sam_original {setting}".strip())


GROUNDING_DINO_URL = "https://github.com/IDEA-Research/GroundingDINO/releases/download/"
SEGMENT_ANYTHING_URL = "https://dl.fbaipublicfiles.com/segment_anything/"

SOURCES: dict[str, File | Repository] = {
    "cifar10_resnet20": _cifar10(20, 1_099_231, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    "cifar10_resnet32": _cifar10(32, 1_890_043, "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850"),
    "cifar10_resnet44": _cifar10(44, 2_680_855, "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4"),
    "cifar10_resnet56": _cifar10(56, 3_471_733, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    "vit_b": Repository(
        "timm/vit_base_patch16_384.augreg_in21k_ft_in1k", "1c30cbc7ec35e68529522c0c2ac55692f83cff18", TIMM_FILES,
        347e6, "Apache-2.0", "classifier=vit_b",
    ),
    "sd14": Repository(
        "CompVis/stable-diffusion-v1-4", None, PIPELINE_FILES, 5.5e9, "CreativeML OpenRAIL-M", "generator=sd14",
    ),
    "sd15": Repository(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14", PIPELINE_FILES,
        5.5e9, "CreativeML OpenRAIL-M", "generator=sd15",
    ),
    "clipseg": Repository(
        "CIDAS/clipseg-rd64-refined", "325a839908143a34b409ae6f2910fa015ea390e6", NETWORK_FILES, 603e6, "Apache-2.0",
        "segmenter=clipseg",
    ),
    "grounding_dino": Repository(
        "IDEA-Research/grounding-dino-base", "12bdfa3120f3e7ec7b434d90674b3396eccf88eb", NETWORK_FILES, 933e6,
        "Apache-2.0", "segmenter=grounded_sam, grounded_sam_hq, grounded_sam2",
    ),
    "sam": Repository(
        "facebook/sam-vit-base", "70c1a07f894ebb5b307fd9eaaee97b9dfc16068f", NETWORK_FILES, 375e6, "Apache-2.0",
        "segmenter=sam, grounded_sam",
    ),
    "sam_hq": Repository(
        "syscv-community/sam-hq-vit-base", "f906a2e", NETWORK_FILES, 379e6, "Apache-2.0",
        "segmenter=sam_hq, grounded_sam_hq",
    ),
    "sam2": Repository(
        "facebook/sam2.1-hiera-base-plus", "b7320756a13354e7530a63935656d35b2f91a290", NETWORK_FILES, 323e6,
        "Apache-2.0", "segmenter=grounded_sam2",
    ),
    "bert": Repository(
        "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594", NETWORK_FILES, 440e6, "Apache-2.0",
        "segmenter=grounded_sam_original",
    ),
    "groundingdino_swint": _grounded_sam(
        f"{GROUNDING_DINO_URL}v0.1.0-alpha/groundingdino_swint_ogc.pth", 693_997_677,
        "3b3ca2563c77c69f651d7bd133e97139c186df06231157a64c507099c52bc799", "",
    ),
    "groundingdino_swinb": _grounded_sam(
        f"{GROUNDING_DINO_URL}v0.1.0-alpha2/groundingdino_swinb_cogcoor.pth", 938_057_991,
        "46270f7a822e6906b655b729c90613e48929d0f2bb8b9b76fd10a856f3ac6ab7", "segmenter.config=GroundingDINO_SwinB_cfg",
    ),
    "sam_vit_b": _grounded_sam(
        f"{SEGMENT_ANYTHING_URL}sam_vit_b_01ec64.pth", 375_042_383,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", "",
    ),
    "sam_vit_h": _grounded_sam(
        f"{SEGMENT_ANYTHING_URL}sam_vit_h_4b8939.pth", 2_564_550_879,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", "segmenter.sam=vit_h",
    ),
}  # fmt: skip


def source_of(name: str) -> File | Repository:
    """The source that `name` means. Raises SystemExit with one line if it means none."""
    if name in SOURCES:
        return SOURCES[name]
    if name.startswith("timm/"):
        repository, _, revision = name.partition("@")
        used_by = f"classifier=timm classifier.name={repository.removeprefix('timm/')}"
        return Repository(repository, revision or None, TIMM_FILES, 0, "see its page", used_by)
    if name.startswith("hub/"):
        repository, _, revision = name.removeprefix("hub/").partition("@")
        return Repository(repository, revision or None, NETWORK_FILES, 0, "see its page", "its hub id")
    more = "timm/<any timm name>[@<commit>] and hub/<owner>/<name>[@<commit>]"
    raise SystemExit(f"{name}: unknown; allowed are {', '.join(SOURCES)}, {more}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_file(source: File) -> Path:
    """Download one file; it takes its name only once its SHA-256 is right. A right one that is there is kept.

    Raises SystemExit with one line if it cannot be had or differs.
    """
    path = source.path
    if path.is_file() and sha256_of(path) == source.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    try:
        urllib.request.urlretrieve(source.url, partial)
        if (found := sha256_of(partial)) != source.sha256:
            raise SystemExit(f"{source.url}: SHA-256 is {found}, expected {source.sha256}; nothing was kept")
        partial.replace(path)
    except URLError as error:
        raise SystemExit(f"{source.url}: cannot be reached ({error.reason})") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def fetch_repository(source: Repository) -> Path:
    """Bring a repository's files into the hub's cache. Raises SystemExit with one line if that fails."""
    try:
        folder = snapshot_download(source.name, revision=source.revision, allow_patterns=list(source.files))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SystemExit(f"{source.name}: cannot be fetched ({reason})") from error
    return Path(folder)


def state_of(source: File | Repository) -> str:
    """`here`, `missing`, or what is wrong; reads local files only."""
    if isinstance(source, File):
        if not source.path.is_file():
            return "missing"
        return "here" if sha256_of(source.path) == source.sha256 else f"damaged: {source.path}"
    try:
        snapshot_download(
            source.name, revision=source.revision, allow_patterns=list(source.files), local_files_only=True
        )
    except (LocalEntryNotFoundError, OSError):
        return "missing"
    return "here"


def describe(name: str, source: File | Repository) -> str:
    """One line: name, size, licence, where it comes from, what pins it, what it is for."""
    if isinstance(source, File):
        origin, pin = source.url, f"sha256 {source.sha256}"
    else:
        origin, pin = f"hub {source.name}", f"revision {source.revision}"
    return f"{name:19} {source.size / 1e6:8.1f} MB  {source.licence:21}  {source.used_by}\n    {origin}\n    {pin}"


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0, or 1 if `check` finds a damaged file."""
    parser = argparse.ArgumentParser(description="Get published weights.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what there is, from where, under which licence")
    commands.add_parser("fetch", help="download and verify").add_argument("name")
    commands.add_parser("check", help="what is here")
    chosen = parser.parse_args(arguments)
    if chosen.command == "list":
        print("\n".join(describe(name, source) for name, source in SOURCES.items()))
        return 0
    if chosen.command == "fetch":
        source = source_of(chosen.name)
        print(fetch_file(source) if isinstance(source, File) else fetch_repository(source))
        return 0
    states = {name: state_of(source) for name, source in SOURCES.items()}
    print("\n".join(f"{name:19} {state}" for name, state in states.items()))
    return int(any(state.startswith("damaged") for state in states.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
