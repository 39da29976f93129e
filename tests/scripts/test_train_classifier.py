"""Training of classifiers, on tiny inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data import planted
from models.zoo import SHIPPED, load_shipped, shipped_oracle
from scripts import train_classifier

TINY = [
    "images=200", "test=100", "steps=2", "batch=16", "device=cpu", "architecture=resnet10t",
    "kwargs={channels: [8, 8, 8, 8]}",
]  # fmt: skip


def test_training_saves_measures_and_continues(tmp_path: Path) -> None:
    train_classifier.main([*TINY, f"out={tmp_path}", "seed=3"])
    first = load_shipped(tmp_path)
    train_classifier.main([*TINY, f"out={tmp_path}", "seed=3"])
    config = json.loads((tmp_path / "config.json").read_text())
    card = (tmp_path / "README.md").read_text()
    assert first.labels == planted.CLASSES and [run["steps"] for run in config["runs"]] == [2, 2]
    assert load_shipped(tmp_path).digest != first.digest and load_shipped(tmp_path).digest in card
    assert "seed=3" in card and "| as they are |" in card and not list(tmp_path.glob("*.tmp"))


def test_training_is_reproducible(tmp_path: Path) -> None:
    for run in "ab":
        train_classifier.main([*TINY, f"out={tmp_path / run}", "augment.jpeg=0.2", "augment.erase=0.2"])
    assert load_shipped(tmp_path / "a").digest == load_shipped(tmp_path / "b").digest


def test_attacked_pictures_train_other_weights_and_a_radius_of_zero_the_same(tmp_path: Path) -> None:
    for name, attack in {"none": [], "zero": ["adversarial.steps=9"], "robust": ["adversarial.epsilon=2.0"]}.items():
        train_classifier.main([*TINY, f"out={tmp_path / name}", *attack])
    none, zero, robust = (load_shipped(tmp_path / name).digest for name in ("none", "zero", "robust"))
    assert none == zero != robust
    assert json.loads((tmp_path / "robust" / "config.json").read_text())["adversarial"]["epsilon"] == 2.0
    assert "under L2 PGD" in (tmp_path / "robust" / "README.md").read_text()
    assert "under L2 PGD" not in (tmp_path / "none" / "README.md").read_text()


def test_an_oracle_has_one_head_per_factor(tmp_path: Path) -> None:
    train_classifier.main([*TINY, f"out={tmp_path}", "name=oracle_convnext"])
    oracle = shipped_oracle(tmp_path)
    read = oracle.read(torch.rand(2, 3, 64, 64))
    widths = {head: logits.shape[1] for head, logits in read.items()}
    assert widths == {"class": 10, "background": 8, "prop": 5, "hue": 6}


def test_another_architecture_is_not_continued(tmp_path: Path) -> None:
    train_classifier.main([*TINY, f"out={tmp_path}"])
    with pytest.raises(SystemExit, match="choose another `out`"):
        train_classifier.main([*TINY, f"out={tmp_path}", "kwargs={channels: [8, 8, 8, 16]}"])


@pytest.mark.parametrize(
    ("argument", "said"),
    [("data=mnist", "allowed are planted"), ("stepz=3", "stepz"), ("strength.viaduct=0.9", "viaduct has no cue")],
)
def test_wrong_arguments_end_in_one_line(argument: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        train_classifier.configure([argument])


@pytest.mark.parametrize("name", sorted(train_classifier.read_defaults().presets))
def test_a_preset_composes_and_is_what_the_shipped_network_was_trained_by(name: str) -> None:
    cfg = train_classifier.configure([f"name={name}"])
    config = SHIPPED / name / "config.json"
    if not config.is_file():  # a preset whose network is not shipped
        assert cfg.data != "planted"
        return
    shipped = json.loads(config.read_text())
    for key in ("architecture", "confusion"):
        assert shipped[key] == cfg[key]
    for key in ("kwargs", "ties", "strength", "adversarial"):
        assert shipped[key] == train_classifier.plain(cfg[key])
    assert list(shipped["heads"]) == list(cfg.heads)


def test_presets_and_command_line() -> None:
    assert train_classifier.configure([]).name == "planted_clean"
    assert train_classifier.configure(["data=cifar10"]).name == "cifar10_small"
    shortcut = train_classifier.configure(["name=planted_shortcut", "strength.fireboat=0.9"])
    assert dict(shortcut.strength) == {"fireboat": 0.9} and shortcut.out.endswith("classifiers/planted_shortcut")
    assert train_classifier.configure(["name=mine", "steps=7"]).steps == 7
