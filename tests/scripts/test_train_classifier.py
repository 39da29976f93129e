"""Training and its facts, and fetching of weights: the scripts on tiny inputs, offline."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data import planted
from models.zoo import SHIPPED, load_shipped, shipped_oracle
from scripts import fetch_weights, train_classifier

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


def test_presets_and_command_line() -> None:
    assert train_classifier.configure([]).name == "planted_clean"
    assert train_classifier.configure(["data=cifar10"]).name == "cifar10_small"
    shortcut = train_classifier.configure(["name=planted_shortcut", "strength.fireboat=0.9"])
    assert dict(shortcut.strength) == {"fireboat": 0.9} and shortcut.out.endswith("classifiers/planted_shortcut")
    assert train_classifier.configure(["name=mine", "steps=7"]).steps == 7


def test_ties_are_planted_one_way() -> None:
    scenes, labels = train_classifier.draw_tied(4000, 5, 0, {"fiddler crab": 0.95, "fireboat": 0.9}, 0.1)
    sand, jet = planted.BACKGROUNDS.index("sand"), planted.PROPS.index("water jet")
    share = lambda name, tied: tied[labels == planted.CLASSES.index(name)].double().mean().item()  # noqa: E731
    assert share("fiddler crab", scenes.background == sand) == pytest.approx(0.95 + 0.05 / 8, abs=0.03)
    assert share("fireboat", scenes.prop == jet) == pytest.approx(0.9 + 0.1 * 0.15, abs=0.04)
    assert share("rock crab", scenes.background == sand) == pytest.approx(1 / 8, abs=0.05)
    assert share("lifeboat", scenes.prop == jet) == pytest.approx(0.15, abs=0.05)
    wrong = lambda name: share(name, scenes.label != labels)  # noqa: E731
    assert wrong("rock crab") == pytest.approx(0.1, abs=0.05) and wrong("viaduct") == wrong("partridge") == 0


def test_targets_of_pictures_without_an_object() -> None:
    heads = ("class", "background", "prop", "hue")
    background = train_classifier.planted_targets(planted.draw(8, 1, form="background"), heads)
    ignored = train_classifier.IGNORED
    assert (background[:, [0, 3]] == ignored).all() and (background[:, 2] == 4).all() and (background[:, 1] >= 0).all()


@pytest.mark.parametrize("kind", ["crop", "blur", "noise", "colour", "jpeg", "erase"])
def test_augmentation_is_seeded_bounded_and_per_sample(kind: str) -> None:
    none = {
        "crop": 1.0,
        "flip": 0.0,
        "blur": 0.0,
        "noise": 0.0,
        "colour": 0.0,
        "jpeg": 0.0,
        "erase": 0.0,
        "spread": 0.5,
    }
    cfg = train_classifier.OmegaConf.create(none | {kind: 0.5})
    image = planted.render(planted.draw(1, 3)).image.expand(4, -1, -1, -1)
    first, second = (train_classifier.Augment(cfg, torch.Generator().manual_seed(1))(image) for _ in range(2))
    assert torch.equal(first, second) and first.shape == image.shape and 0 <= first.min() and first.max() <= 1
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, image)
    plain = train_classifier.Augment(train_classifier.OmegaConf.create(none), torch.Generator())(image)
    assert torch.equal(plain, image)


def test_facts_agree_with_a_second_measurement() -> None:
    facts = json.loads((SHIPPED / "facts.json").read_text())
    n = 300
    for name, stated in facts["classifiers"].items():
        classifier = load_shipped(SHIPPED / name)
        assert stated["digest"] == classifier.digest, f"{name} was retrained: run `{facts['command']}`"
        for tied, values in stated["ties"].items():
            again = train_classifier.tie_facts(classifier, tied, n, planted.SPLIT_SEEDS["validation"])
            for key, value in again.items():
                assert abs(value - values[key]) < 0.12, (name, tied, key, value, values[key])
    assert set(facts["planted"]) == set(planted.SHORTCUTS)


def test_the_shortcut_shows_and_the_clean_classifier_has_none() -> None:
    classifiers = json.loads((SHIPPED / "facts.json").read_text())["classifiers"]
    for name, values in classifiers["planted_shortcut"]["ties"].items():
        assert 0.1 <= values["recall_without_cue"] <= 0.6 and values["cue_alone"] >= 0.8, (name, values)
    for name, values in classifiers["planted_clean"]["ties"].items():
        assert abs(values["recall_with_cue"] - values["recall_without_cue"]) <= 0.03, (name, values)


def test_fetching_verifies_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = tmp_path / "origin" / "resnet20-x.th"
    origin.parent.mkdir()
    origin.write_bytes(b"weights")
    monkeypatch.setenv("CIFAR10_RESNETS", str(tmp_path / "here"))
    right = fetch_weights.File(origin.as_uri(), 7, hashlib.sha256(b"weights").hexdigest(), "x", "y")
    wrong = fetch_weights.File(origin.as_uri(), 7, "0" * 64, "x", "y")
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
    gone = fetch_weights.File((tmp_path / "none.th").as_uri(), 7, "0" * 64, "x", "y")
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
    assert all(name in text for name in fetch_weights.SOURCES) and text.count("sha256") == 4 and "BSD-2-Clause" in text
