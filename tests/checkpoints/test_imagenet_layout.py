"""The audit on pictures in ImageNet's layout and on networks of the hub's layouts, small and random."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from classifier_lens.data.salient_imagenet import COLUMNS
from classifier_lens.models.classifier.loaders.class_names import imagenet_labels
from tests.checkpoints.hub import write_consistency_model
from tests.cli import Cli
from tests.conftest import SHARED
from tests.models.segmenter.tiny_dino import write_detector
from tests.models.segmenter.tiny_sam import write_sam

SAMPLES = SHARED / "imagenet_samples"
# Class number, feature number, rank and what most people say of it.
SAID = [(1, 2, 1, True), (1, 0, 2, False), (2, 3, 1, False), (2, 1, 2, False), (980, 5, 1, True)]
GROUPS = {"goldfish": "medium", "great white shark": "biased", "volcano": "unbiased"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consistency model, a detector and a Segment Anything, with random weights."""
    folder = tmp_path_factory.mktemp("hub")
    write_consistency_model(folder / "lcm")
    for name in ("detector", "sam"):
        (folder / name).mkdir()
    write_detector(folder / "detector", side=128)
    write_sam("sam", folder / "sam")
    return folder


def tree(folder: Path, pictures: Path) -> Path:
    """<class>/<picture> of the photographs whose class open_clip names as their file does."""
    known = {name.lower(): name for name in imagenet_labels()}
    for file in sorted(pictures.glob("*.JPEG")):
        label = known.get(file.stem.split("_", 1)[1].replace("_", " "))
        if label is not None:
            (folder / label).mkdir(parents=True)
            with Image.open(file) as picture:
                picture.convert("RGB").resize((96, 80)).save(folder / label / "a.png")
    return folder


def answers(path: Path) -> Path:
    """What five people say of each feature."""
    rows = [
        (label, feature, rank, "main_object" if (person < 3) == core else "background")
        for label, feature, rank, core in SAID for person in range(5)
    ]  # fmt: skip
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"{SAMPLES} is not there")
def test_the_audit_of_a_folder(hub: Path, cli: Cli, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pictures = tree(tmp_path / "train", SAMPLES)
    assert len(list(pictures.iterdir())) >= 20
    asked = (
        "task=spurious_audit",
        "classifier=timm",
        "classifier.name=test_vit",
        "classifier.pretrained=false",
        f"training.path={pictures}",
        "task/annotations=salient_imagenet",
        f"task.annotations.path={answers(tmp_path / 'answers.csv')}",
        f"generator.path={hub / 'lcm'}",
        "generator.resolution=64",
        "generator.steps=2",
        "generator.attention_maps.resolution=8",
        "parametrization.num_initializations=2",
        "parametrization.images_per_step=1",
        "parametrization.validation_images=1",
        "parametrization.images_per_result=3",
        "optimizer.steps=1",
        f"text_segmenter.detector={hub / 'detector'}",
        f"text_segmenter.path={hub / 'sam'}",
        "logger=none",
        "threads=1",
        f"outputs={cli.outputs}",
        "limit=null",
        "batch=5",
    )
    outcome = cli.plain(capfd, *asked)
    assert outcome.code == 0, outcome
    assert cli.folder.parent.name == "imagenet_lcm-timm", "chosen by the classifier's domain and the task's sampler"
    found = [json.loads(line) for line in (cli.folder / "results.jsonl").read_text().splitlines()]
    labels = imagenet_labels()
    assert [(r["target"], r["unit"], r["rank"], r["annotation"] == "core") for r in found] == [
        (labels[label], f"features:{feature}", rank, core) for label, feature, rank, core in SAID
    ]
    assert {r["target"]: r["group"] for r in found} == GROUPS
    assert {r["target"]: r["animate"] for r in found} == {name: name != "volcano" for name in GROUPS}
    assert all(
        len(r["r_per_image"]) == 3 and 0 <= min(r["r_per_image"]) <= r["r"] <= max(r["r_per_image"]) <= 1 for r in found
    )
    summary = json.loads((cli.folder / "summary.json").read_text())
    reached = [r for r in found if r["activated"]]
    counted = {row["group"]: row["features"] for row in summary["agreement"]}
    assert counted["all"] == len(reached) == 5 - summary["not_activated"] > 0
    assert counted.get("biased", 0) == sum(r["group"] == "biased" for r in reached)
    assert "Agreement with human annotations" in (cli.folder / "index.html").read_text()
