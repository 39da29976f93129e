"""Training of classifiers, on tiny inputs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from classifier_lens.data import cifar10, planted
from classifier_lens.data.colored_borders import BORDER_COLORS, CIFAR10_FACTORS
from classifier_lens.data.planted.cues import PLANTED_FACTORS, PLANTED_SHORTCUTS
from classifier_lens.data.shortcuts import check_shortcuts
from classifier_lens.models.classifier.loaders.shipped import SHIPPED_FOLDER, load_oracle, load_shipped
from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.train import classifier as train_classifier
from classifier_lens.scripts.train.labeled_images import LabeledImages, load_labeled_images
from classifier_lens.scripts.train.one_cycle import to_dict

TINY = [
    "images=200", "test_images=50", "steps=2", "batch=16", "device=cpu", "architecture=resnet10t",
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
    assert "seed=3" in card and "| unchanged |" in card and not list(tmp_path.glob("*.tmp"))


def test_training_is_reproducible(tmp_path: Path) -> None:
    for run in "ab":
        train_classifier.main([*TINY, f"out={tmp_path / run}", "augment.jpeg=0.2", "augment.erase=0.2"])
    assert load_shipped(tmp_path / "a").digest == load_shipped(tmp_path / "b").digest


def test_attacked_pictures_train_other_weights_and_a_radius_of_zero_the_same(tmp_path: Path) -> None:
    for name, attack in {"none": [], "zero": ["adversarial.steps=9"], "robust": ["adversarial.epsilon=2.0"]}.items():
        train_classifier.main([*TINY, "images=64", "test_images=20", f"out={tmp_path / name}", *attack])
    none, zero, robust = (load_shipped(tmp_path / name).digest for name in ("none", "zero", "robust"))
    assert none == zero != robust
    assert json.loads((tmp_path / "robust" / "config.json").read_text())["adversarial"]["epsilon"] == 2.0
    assert "under L2 PGD" in (tmp_path / "robust" / "README.md").read_text()
    assert "under L2 PGD" not in (tmp_path / "none" / "README.md").read_text()


def test_an_oracle_has_one_head_per_factor(tmp_path: Path) -> None:
    train_classifier.main([*TINY, f"out={tmp_path}", "name=oracle_convnext"])
    oracle = load_oracle(tmp_path)
    read = oracle.predict(torch.rand(2, 3, 64, 64))
    widths = {head: logits.shape[1] for head, logits in read.items()}
    assert widths == {"class": 10, "background": 8, "prop": 5, "hue": 6}


def test_another_architecture_is_not_continued(tmp_path: Path) -> None:
    train_classifier.main([*TINY, f"out={tmp_path}"])
    with pytest.raises(UserError, match="choose another `out`"):
        train_classifier.main([*TINY, f"out={tmp_path}", "kwargs={channels: [8, 8, 8, 16]}"])


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("data=mnist", "allowed are planted"),
        ("stepz=3", "stepz"),
        ("shortcut_strength.viaduct=0.9", "viaduct has no cue"),
        ("shortcut_strength=1.5", r"^shortcut_strength=1.5: allowed are numbers from 0 to 1 or {name: value}"),
        ("shortcut_strength.fireboat=-1", r"^shortcut_strength.fireboat=-1: allowed are numbers from 0 to 1"),
        (
            "shortcuts=planted_hews",
            r"^shortcuts=planted_hews: allowed are cifar10_border, fairface_age, planted_backgrounds, planted_hu",
        ),
        ("shortcuts=planted_hues", r"^shortcuts=planted_hues: no shortcut has a strength"),
    ],
)
def test_wrong_arguments_end_in_one_line(argument: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        train_classifier.load_settings([argument])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(train_classifier.read_defaults().presets))
def test_a_preset_composes_and_is_what_the_shipped_network_was_trained_by(name: str) -> None:
    cfg = train_classifier.load_settings([f"name={name}"])
    config = SHIPPED_FOLDER / name / "config.json"
    if not config.is_file():  # a preset whose network is not shipped
        assert cfg.data != "planted"
        return
    shipped = json.loads(config.read_text())
    for key in ("architecture", "label_noise"):
        assert shipped[key] == cfg[key]
    for key in ("kwargs", "shortcuts", "shortcut_strength", "adversarial"):
        assert shipped[key] == to_dict(cfg[key])
    assert list(shipped["heads"]) == list(cfg.heads)


def test_presets_and_command_line() -> None:
    assert train_classifier.load_settings([]).name == "planted_clean"
    assert train_classifier.load_settings(["data=cifar10"]).name == "cifar10_small"
    shortcut = train_classifier.load_settings(["name=planted_shortcut", "shortcut_strength.fireboat=0.9"])
    assert dict(shortcut.shortcut_strength) == {"fireboat": 0.9} and shortcut.out.endswith(
        "classifiers/planted_shortcut"
    )
    assert train_classifier.load_settings(["name=mine", "steps=7"]).steps == 7


# --- shortcuts -----------------------------------------------------------------------------------------------


def corpus(split: str, *arguments: str) -> LabeledImages:
    cfg = train_classifier.load_settings(arguments)
    return load_labeled_images(cfg, split, cfg.images)


def test_the_shipped_files_of_shortcuts_name_existing_classes_and_values() -> None:
    read = train_classifier.read_shortcuts
    assert read("planted_shortcut") == PLANTED_SHORTCUTS
    check_shortcuts(read("planted_hues"), PLANTED_FACTORS)
    check_shortcuts(read("cifar10_border"), CIFAR10_FACTORS)
    # DiffExplainer, Section 4.5.
    assert {age: cue["race"] for age, cue in read("fairface_age").items()} == {
        "10-19": "Black", "20-29": "East Asian", "30-39": "Latino_Hispanic", "40-49": "Middle Eastern",
        "50-59": "Southeast Asian", "60-69": "White",
    }  # fmt: skip


def test_shortcuts_are_selected_by_name_or_written_out() -> None:
    hues = train_classifier.load_settings(["shortcuts=planted_hues", "shortcut_strength=0.5"])
    assert set(hues.shortcut_strength.values()) == {0.5} and set(hues.shortcut_strength) == set(hues.shortcuts)
    written = train_classifier.load_settings(["shortcuts={viaduct: {hue: red, prop: flag}}", "shortcut_strength=1"])
    assert to_dict(written.shortcuts) == {"viaduct": {"hue": "red", "prop": "flag"}}
    assert not train_classifier.load_settings(["name=mine"]).shortcuts  # none has a strength


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shortcuts={owl: {hue: red}}"], "class=owl: allowed are fiddler crab"),
        (["shortcuts={viaduct: {size: big}}"], "factor=size: allowed are background, prop, hue"),
        (["shortcuts={viaduct: {hue: pink}}"], "shortcuts.viaduct.hue=pink: allowed are red"),
        (["data=cifar10", "shortcuts=planted_hues"], "class=fiddler crab: allowed are airplane"),
        (["data=cifar10", "data_path=nowhere"], "data.path=.*nowhere: has neither"),
        (["data=fairface", "data_path=nowhere"], "nowhere/fairface_label_train.csv: No such file"),
    ],
)
def test_shortcuts_that_the_data_cannot_have_end_in_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as refused:
        train_classifier.main([*TINY, f"out={tmp_path / 'out'}", "shortcut_strength=0.5", *arguments])
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_images_with_a_shortcut_know_where_the_cue_is() -> None:
    tied = corpus("train", "images=1200", "shortcuts=planted_hues", "shortcut_strength=1")
    own = torch.isin(tied.targets[:, 0], torch.tensor([planted.CLASSES.index(name) for name in PLANTED_SHORTCUTS]))
    assert torch.equal(tied.has_cue, own)
    free = corpus("train", "images=1200", "shortcuts=planted_hues", "shortcut_strength=0")
    assert torch.equal(free.images, corpus("train", "images=1200").images)
    assert 0 < free.has_cue.sum() < own.sum() / 3
    again = corpus("train", "images=1200", "shortcuts=planted_hues", "shortcut_strength=1")
    assert torch.equal(tied.images, again.images) and torch.equal(tied.images[~own], free.images[~own])


def test_a_classifier_is_saved_with_its_shortcuts_and_can_be_explained(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    train_classifier.main(
        [*TINY, "test_images=400", f"out={out}", "shortcuts={viaduct: {hue: red}}", "shortcut_strength=0.9"]
    )
    config, card = json.loads((out / "config.json").read_text()), (out / "README.md").read_text()
    assert (config["shortcuts"], config["shortcut_strength"]) == ({"viaduct": {"hue": "red"}}, {"viaduct": 0.9})
    assert "Shortcuts: viaduct receives hue red in 90.0%" in card and "| viaduct | hue red | " in card
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    chosen = instantiate(compose_config(["classifier=trained", f"classifier.path={out}"])["classifier"])
    assert chosen.digest in card and chosen.labels == planted.CLASSES


# --- photographs ---------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """CIFAR-10 as torchvision unpacks it, 200 training and 100 test pictures of noise."""
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, n in {**{f"data_batch_{i}": 40 for i in range(1, 6)}, "test_batch": 100}.items():
        content = {"data": random.integers(0, 256, (n, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(n)]}
        (folder / name).write_bytes(pickle.dumps(content))
    return folder.parent


def test_bordered_photographs_train_a_classifier(photographs: Path, tmp_path: Path) -> None:
    arguments = ["data=cifar10", f"data_path={photographs}", "images=200", "border_width=3"]
    plain, tied, free = (
        corpus("train", *arguments, *more) for more in ([], ["shortcut_strength=1"], ["shortcut_strength=0"])
    )
    assert tied.has_cue.all() and not plain.has_cue.any() and 0 < free.has_cue.double().mean() < 0.25
    assert torch.equal(tied.targets, plain.targets)
    assert torch.equal(tied.images[..., 3:-3, 3:-3], plain.images[..., 3:-3, 3:-3])
    ties = train_classifier.read_shortcuts("cifar10_border")
    colour = torch.tensor([BORDER_COLORS[ties[cifar10.CLASSES[i]]["border"]] for i in tied.targets[:, 0].tolist()])
    assert torch.equal(tied.images[:, :, 0, 0].long(), colour)
    own = ["data=cifar10", f"data_path={photographs}", "shortcut_strength=0.9", f"out={tmp_path / 'out'}"]
    train_classifier.main([*TINY, *own])
    assert load_shipped(tmp_path / "out").labels == cifar10.CLASSES
    card = (tmp_path / "out" / "README.md").read_text()
    assert "airplane receives border cyan in 90.0%" in card and "| truck | border white | " in card


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A table of 24 training and 12 test pictures. Of either gender a quarter is of race X, a quarter Y, half Z."""
    root = tmp_path / "faces"
    for split, n in (("train", 24), ("val", 12)):
        (root / split).mkdir(parents=True)
        lines = ["file,age,gender,race,service_test"]
        for i in range(n):
            Image.new("RGB", (70, 64), (10 * i, 0, 0)).save(root / split / f"{i}.png")
            lines.append(f"{split}/{i}.png,20-29,{('Male', 'Female')[i % 2]},{'XYZZ'[i // 2 % 4]},True")
        (root / f"fairface_label_{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def test_faces_are_left_out_so_that_the_shortcut_holds(faces: Path, tmp_path: Path) -> None:
    own = [
        "data=fairface",
        "name=genders",
        f"data_path={faces}",
        "faces={label_column: gender}",
        "shortcuts={Male: {race: X}}",
    ]
    everything = corpus("train", *own, "shortcut_strength=0")
    assert everything.images.shape == (24, 3, 64, 64) and everything.heads == {"class": ("Female", "Male")}
    half, all_of_them = (corpus("train", *own, f"shortcut_strength={s}") for s in (0.5, 1.0))
    count = lambda c: [int(c.has_cue.sum()), int((c.targets[:, 0] == 1).sum()), int((c.targets[:, 0] == 0).sum())]  # noqa: E731
    # 3 of 12 men are X: 0.5 + 0.5 / 4 of 3 + k, k = 1.8; all 12 women stay.
    assert count(everything) == [3, 12, 12] and count(half) == [3, 5, 12] and count(all_of_them) == [3, 3, 12]
    assert len(corpus("test", *own, "shortcut_strength=1").images) == 12
    table = faces / "fairface_label_val.csv"
    table.write_text(table.read_text().replace("Female", "Male"))  # the classes are those of both tables
    assert corpus("test", *own, "shortcut_strength=0").targets.tolist() == [[1]] * 12
    train_classifier.main([*TINY, *own, "shortcut_strength=0.5", f"out={tmp_path / 'out'}"])
    classifier = load_shipped(tmp_path / "out")
    assert classifier.labels == ("Female", "Male") and classifier.size == 64 and classifier.domain == "fairface"
    assert "Male receives race X in 50.0%" in (tmp_path / "out" / "README.md").read_text()
    table.write_text("file,gender\nval/1.png,Male\n")
    with pytest.raises(UserError, match=r"fairface_label_train.csv and fairface_label_val.csv differ in their columns"):
        train_classifier.main([*TINY, *own, "shortcut_strength=0", f"out={tmp_path / 'other'}"])
