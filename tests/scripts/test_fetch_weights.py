"""Fetching of weights, offline."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from runner.compose import configure
from scripts import fetch_weights


def test_fetching_verifies_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = tmp_path / "origin" / "resnet20-x.th"
    origin.parent.mkdir()
    origin.write_bytes(b"weights")
    monkeypatch.setenv("CIFAR10_RESNETS", str(tmp_path / "here"))
    right = fetch_weights.File(
        fetch_weights.CIFAR10, origin.as_uri(), 7, hashlib.sha256(b"weights").hexdigest(), "x", "y"
    )
    wrong = fetch_weights.File(fetch_weights.CIFAR10, origin.as_uri(), 7, "0" * 64, "x", "y")
    monkeypatch.setattr(fetch_weights, "SOURCES", {"net": right})
    assert fetch_weights.state_of(right) == "missing"
    with pytest.raises(SystemExit, match="expected 0000"):
        fetch_weights.fetch_file(wrong)
    assert list((tmp_path / "here").iterdir()) == []
    assert fetch_weights.main(["fetch", "net"]) == 0 and right.path.read_bytes() == b"weights"
    assert fetch_weights.main(["check"]) == 0 and "net" in capsys.readouterr().out
    right.path.write_bytes(b"other")
    assert fetch_weights.main(["check"]) == 1
    assert fetch_weights.main(["fetch", "net"]) == 0 and right.path.read_bytes() == b"weights"
    gone = fetch_weights.File(fetch_weights.CIFAR10, (tmp_path / "none.th").as_uri(), 7, "0" * 64, "x", "y")
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
    assert getattr(fetch_weights.source_of("timm/resnet50.a1_in1k"), "name", None) == "timm/resnet50.a1_in1k"
    with pytest.raises(SystemExit, match="allowed are cifar10_resnet20"):
        fetch_weights.main(["fetch", "resnet"])


def test_list_names_licence_and_pin_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    fetch_weights.main(["list"])
    text = capsys.readouterr().out
    files = [source for source in fetch_weights.SOURCES.values() if isinstance(source, fetch_weights.File)]
    assert all(name in text for name in fetch_weights.SOURCES) and text.count("sha256") == len(files) == 8
    assert "BSD-2-Clause" in text


@pytest.mark.parametrize("option", ["clipseg", "sam", "sam_hq", "grounded_sam", "grounded_sam_hq", "grounded_sam2"])
def test_what_segmenters_load_is_known_at_the_same_revision(option: str) -> None:
    node = configure([f"segmenter={option}"])["segmenter"]
    wanted = {(node["path"], node["revision"])}
    if "detector" in node:
        wanted.add((node["detector"], node["detector_revision"]))
    sources = [s for s in fetch_weights.SOURCES.values() if isinstance(s, fetch_weights.Repository)]
    assert {(s.name, s.revision) for s in sources if option in s.used_by.split("=")[1].split(", ")} == wanted


def test_the_files_of_the_original_grounded_sam_are_looked_for_where_they_are_put(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GROUNDED_SAM", str(tmp_path))
    node = configure(["segmenter=grounded_sam_original"])["segmenter"]
    known = [getattr(source, "path", None) for source in fetch_weights.SOURCES.values()]
    assert {Path(node["weights"]), Path(node["sam_weights"])} <= set(known)
