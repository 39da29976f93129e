"""Fetching of weights, offline."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.types import UserError
from classifier_lens.scripts import fetch_weights
from classifier_lens.scripts.weights.required_sources import LOADERS, required_sources
from classifier_lens.scripts.weights.sources import (
    CIFAR10,
    SOURCES,
    HubRepository,
    WeightFile,
    find_source,
)

WEIGHTS = b"weights"
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No file of the user's is read or written."""
    monkeypatch.setattr(fetch_weights, "MANIFEST", tmp_path / "weights.json")
    monkeypatch.setenv("CIFAR10_RESNETS", str(tmp_path / "here"))


def test_fetching_verifies_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = tmp_path / "origin" / "resnet20-x.th"
    origin.parent.mkdir()
    origin.write_bytes(b"weights")
    right = WeightFile(CIFAR10, origin.as_uri(), 7, hashlib.sha256(b"weights").hexdigest(), "x", "y")
    wrong = WeightFile(CIFAR10, origin.as_uri(), 7, "0" * 64, "x", "y")
    monkeypatch.setitem(SOURCES, "net", right)
    assert fetch_weights.source_status(right) == "missing"
    with pytest.raises(SystemExit, match="expected 0000"):
        fetch_weights.fetch_file(wrong)
    assert list((tmp_path / "here").iterdir()) == []
    assert fetch_weights.main(["fetch", "net"]) == 0 and right.path.read_bytes() == b"weights"
    assert fetch_weights.main(["check"]) == 0 and "net" in capsys.readouterr().out
    right.path.write_bytes(b"other")
    assert fetch_weights.main(["check"]) == 1
    assert fetch_weights.main(["fetch", "net"]) == 0 and right.path.read_bytes() == b"weights"
    gone = WeightFile(CIFAR10, (tmp_path / "none.th").as_uri(), 7, "0" * 64, "x", "y")
    with pytest.raises(SystemExit, match="cannot be reached"):
        fetch_weights.fetch_file(gone)


def test_hub_weights_are_fetched_at_their_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def download(name: str, **options: Any) -> str:
        calls.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(fetch_weights, "snapshot_download", download)
    assert fetch_weights.main(["fetch", "sd15"]) == 0
    name, options = calls[0]
    assert name == "stable-diffusion-v1-5/stable-diffusion-v1-5" and len(options["revision"]) == 40
    assert getattr(find_source("timm/resnet50.a1_in1k"), "name", None) == "timm/resnet50.a1_in1k"
    with pytest.raises(UserError, match="allowed are cifar10_resnet20"):
        find_source("resnet")


def test_list_names_license_and_pin_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    fetch_weights.main(["list"])
    text = capsys.readouterr().out
    files = [source for source in SOURCES.values() if isinstance(source, WeightFile)]
    assert all(name in text for name in SOURCES) and text.count("sha256 ") == len(files) == 8
    assert "BSD-2-Clause" in text


@pytest.mark.parametrize(
    "option", ["clipseg", "sam", "sam_hq", "sam_hq_huge", "grounded_sam", "grounded_sam_hq", "grounded_sam2"]
)
def test_what_segmenters_load_is_known_at_the_same_revision(option: str) -> None:
    node = compose_config([f"segmenter={option}"])["segmenter"]
    wanted = {(node["path"], node["revision"])}
    if "detector" in node:
        wanted.add((node["detector"], node["detector_revision"]))
    sources = [s for s in SOURCES.values() if isinstance(s, HubRepository)]
    assert {(s.name, s.revision) for s in sources if option in s.used_by.split("=")[1].split(", ")} == wanted


def test_the_files_of_the_original_grounded_sam_are_looked_for_where_they_are_put(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GROUNDED_SAM", str(tmp_path))
    node = compose_config(["segmenter=grounded_sam_original"])["segmenter"]
    known = [getattr(source, "path", None) for source in SOURCES.values()]
    assert {Path(node["detector_weights"]), Path(node["sam_weights"])} <= set(known)


# --- what a configuration loads ------------------------------------------------------------------------------


def names(*words: str) -> list[str]:
    """The hub's repositories and the files that these words of run.py load."""
    found = required_sources(compose_config(words))
    return [source.name if isinstance(source, HubRepository) else source.path.name for source in found]


def test_the_planted_world_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("uvce", "spurious_audit", "disagreement", "diffexplainer_class", "neuron_vis"):
        assert names(f"task={task}") == []
    assert fetch_weights.main(["fetch", "task=uvce"]) == 0 and capsys.readouterr().out.startswith("nothing to fetch:")
    assert not fetch_weights.MANIFEST.exists()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["classifier=vit_b"], {
            "stable-diffusion-v1-5/stable-diffusion-v1-5", "timm/vit_base_patch16_384.augreg_in21k_ft_in1k",
        }),
        (["classifier=vit_b", "classifier.pretrained=false", "generator=planted_ddim"], set()),
        (["classifier=vit_b", "generator=sd15_lcm_lora", "generator.path=."], {
            "latent-consistency/lcm-lora-sdv1-5", "timm/vit_base_patch16_384.augreg_in21k_ft_in1k",
        }),
        (["classifier=clip_zeroshot_clipa_h", "generator=planted_ddim"], {
            "UCSC-VLAA/ViT-H-14-CLIPA-datacomp1B", "bert-base-uncased",
        }),
        (["classifier=caffenet", "generator=planted_ddim"], {"alexnet-owt-7be5be79.pth"}),
        (["classifier=vit_cub", "generator=planted_ddim"], {"PwNzDust/vit_cub"}),
        (["segmenter=sam_hq"], {"syscv-community/sam-hq-vit-base"}),
        (["classifier=clip_zeroshot", "generator=planted_ddim"], {"laion/CLIP-ViT-B-16-laion2B-s34B-b88K"}),
        (["task=spurious_audit", "segmenter@text_segmenter=grounded_sam"], {
            "IDEA-Research/grounding-dino-base", "facebook/sam-vit-base",
        }),
        (["task=uvce", "segmenter@text_segmenter=grounded_sam"], set()),
        (["classifier=cifar10_resnet20", "generator=planted_ddim"], {"resnet20-12fca82f.th"}),
        (["segmenter=grounded_sam_original"], {
            "groundingdino_swint_ogc.pth", "sam_vit_b_01ec64.pth", "google-bert/bert-base-uncased",
        }),
    ],
)  # fmt: skip
def test_what_words_of_run_py_load(words: list[str], wanted: set[str]) -> None:
    assert set(names(*words)) == wanted


def test_weights_of_torchvision_are_told_by_the_name_of_their_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = find_source("torchvision/resnet50.IMAGENET1K_V2")
    assert isinstance(source, WeightFile) and source.sha256 == "11ad3fa6"
    assert source.path == tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    with pytest.raises(UserError, match="torchvision has no such weights"):
        find_source("torchvision/resnet50.MINE")
    origin = tmp_path / "origin" / "net.pth"
    origin.parent.mkdir()
    origin.write_bytes(WEIGHTS)
    begun = WeightFile((None, str(tmp_path / "there")), origin.as_uri(), 7, SHA256[:8], "x", "y")
    assert fetch_weights.fetch_file(begun).read_bytes() == WEIGHTS and fetch_weights.source_status(begun) == "here"


def test_an_experiments_runs_are_all_thought_of() -> None:
    """DiG-IN's Fig. 19 asks four classifiers about the same pictures."""
    found = {
        source.name
        for source in fetch_weights.resolve_sources(["experiment=dig_in/fig19"])
        if isinstance(source, HubRepository)
    }
    assert len([name for name in found if name.startswith("timm/")]) == 4


def test_a_known_repository_keeps_what_is_known_of_it() -> None:
    (sd15, _) = required_sources(
        compose_config(["classifier=vit_b", "generator.variant=fp16", "generator.revision=abc"])
    )
    assert isinstance(sd15, HubRepository) and sd15.revision == "abc" and sd15.license == "CreativeML OpenRAIL-M"
    assert "*/model.fp16.safetensors" in sd15.files and "*/model.safetensors" not in sd15.files


def test_an_option_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch_weights.main(["fetch", "task.baseline=magic"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- transfers -----------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Gives one file in parts, and hangs up after `most` bytes of an answer."""

    most: int | None = None
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(WEIGHTS):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(WEIGHTS) - start))
        self.end_headers()
        self.wfile.write(WEIGHTS[start:][: self.most])

    def log_message(self, format: str, *arguments: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    """Where a server of this machine has the weights."""
    Server.most, Server.asked = None, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/net.th"
        server.shutdown()


def test_a_transfer_that_was_cut_short_continues(url: str, tmp_path: Path) -> None:
    source = WeightFile(CIFAR10, url, len(WEIGHTS), SHA256, "x", "y")
    Server.most = 3
    with pytest.raises(SystemExit, match="interrupted"):
        fetch_weights.fetch_file(source)
    assert (tmp_path / "here" / "net.th.part").read_bytes() == WEIGHTS[:3] and not source.path.exists()
    Server.most = None
    assert fetch_weights.fetch_file(source).read_bytes() == WEIGHTS
    assert Server.asked == [None, "bytes=3-"] and [p.name for p in (tmp_path / "here").iterdir()] == ["net.th"]
    source.path.rename(tmp_path / "here" / "net.th.part")  # whole, but not named yet
    assert fetch_weights.fetch_file(source).read_bytes() == WEIGHTS and Server.asked[-1] == "bytes=7-"


def test_what_was_fetched_is_noted_and_checked(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = tmp_path / "hub" / "abc123"
    (hub / "unet").mkdir(parents=True)
    (hub / "unet" / "model.safetensors").write_bytes(WEIGHTS)
    monkeypatch.setattr(fetch_weights, "snapshot_download", lambda *_, **__: str(hub))
    monkeypatch.setitem(SOURCES, "net", WeightFile(CIFAR10, url, len(WEIGHTS), SHA256, "free", "y"))
    assert fetch_weights.main(["fetch", "net", "hub/some/body@abc123"]) == 0
    noted = fetch_weights.read_manifest(fetch_weights.MANIFEST)
    assert set(noted) == {url, "some/body"} and noted["some/body"]["revision"] == "abc123"
    assert noted[url]["files"] == {str(tmp_path / "here" / "net.th"): {"size": 7, "sha256": SHA256}}
    capsys.readouterr()
    assert fetch_weights.main(["check"]) == 0
    (hub / "unet" / "model.safetensors").write_bytes(b"weighty")
    assert fetch_weights.main(["check"]) == 1
    assert f"damaged: {hub / 'unet' / 'model.safetensors'}" in capsys.readouterr().out


def test_every_loader_of_weights_is_known() -> None:
    """What the configurations call to load networks, apart from what is shipped or the user's own."""
    called = set()
    for path in (Path(__file__).parents[2] / "conf").rglob("*.yaml"):
        called |= set(re.findall(r"_target_: (classifier_lens\.models\.[\w.]+)", path.read_text()))
    loading = {name for name in called if re.search(r"\.(load|load_\w+|zero_shot|\w+_classifier|\w+_resnet)$", name)}
    files_of_the_users = {"user_network.callable_classifier", "convstem.convstem_classifier"}
    in_packages = {"efficientnet_lite.efficientnet_lite_classifier"}
    others = {"shipped.load_shipped", *files_of_the_users, *in_packages}
    assert loading - set(LOADERS) == {f"classifier_lens.models.classifier.loaders.{name}" for name in others}
    assert set(LOADERS) <= called
