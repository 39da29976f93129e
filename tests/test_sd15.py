"""A folder of Stable Diffusion 1.5's exact layout and component classes, small and random, runs end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli import Cli
from tests.hub import write_stable_diffusion


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_stable_diffusion(tmp_path_factory.mktemp("hub") / "stable-diffusion-v1-5")
    assert not (folder / "safety_checker").exists() and not (folder / "feature_extractor").exists()
    return folder


def explain(sd15: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path, *classifier: str) -> None:
    """One photograph towards the strongest wrong class, with sd15's own settings where the size allows them."""
    Image.effect_noise((90, 70), 60).convert("RGB").save(tmp_path / "x.jpg")
    outcome = cli.plain(
        capfd, "task=uvce", *classifier, "data=image", f"data.path={tmp_path / 'x.jpg'}", "data.label=goldfish",
        f"generator.path={sd15}", "generator.resolution=64", "generator.steps=4", "generator.maps.side=8",
        "generator.schedules.inject=[0.5]", "generator.schedules.blend=[0.5]", "generator.softening.latents.blur=3",
        "generator.softening.pixels.blur=3",
        "generator.null_text.inner_steps=2", "optimizer.steps=1", "augment.crops=1", "logger=none", "threads=1",
        f"outputs={cli.outputs}",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    name = dict(word.split("=", 1) for word in classifier)["classifier"]
    assert cli.folder.parent.name == f"imagenet_ddim-{name}", "chosen by the classifier's domain"
    (line,) = map(json.loads, (cli.folder / "results.jsonl").read_text().splitlines())
    assert line["source"] == "goldfish" and line["target"] != "goldfish"
    assert line["caption"] == "a photograph of a goldfish" and len(line["history"]) == 2
    assert Image.open(cli.folder / line["images"]["best"]).size == (64, 64)


def test_a_small_classifier(sd15: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    explain(sd15, cli, capfd, tmp_path, "classifier=timm", "classifier.name=test_vit", "classifier.pretrained=false")


@pytest.mark.slow
def test_vit_b(sd15: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    explain(sd15, cli, capfd, tmp_path, "classifier=vit_b", "classifier.pretrained=false")
