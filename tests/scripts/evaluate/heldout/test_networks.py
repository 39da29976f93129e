"""Training of the held-out networks, on tiny inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from classifier_lens.models.classifier.loaders.shipped import load_shipped
from classifier_lens.scripts.evaluate.heldout import networks
from classifier_lens.scripts.evaluate.heldout.architectures import Architecture
from classifier_lens.scripts.evaluate.heldout.random_shortcuts import HeldOutNetwork, held_out_network
from classifier_lens.scripts.train import classifier
from classifier_lens.scripts.train.labeled_images import load_labeled_images

TINY = ("data=planted", "images=48", "steps=2", "batch=16", "test_images=20", "device=cpu")


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeldOutNetwork:
    """A tiny network, which is kept in `tmp_path`."""
    network = held_out_network(0, 0)
    monkeypatch.setattr(networks, "FOLDER", tmp_path)
    monkeypatch.setattr(networks, "RECIPE", TINY)
    tiny = Architecture("resnet10t", {"channels": [8, 8, 8, 8]})
    monkeypatch.setattr(networks, "ARCHITECTURES", {network.family: tiny})
    return network


def test_a_network_is_saved_with_its_shortcuts_and_its_twin_without(network: HeldOutNetwork, tmp_path: Path) -> None:
    tied, clean = (networks.trained_network(0, x) for x in (network, network.clean_twin))
    assert tied == tmp_path / "seed0" / network.name and sorted(tmp_path.glob("seed0/*")) == sorted([tied, clean])
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tied, clean)]
    assert [config["shortcuts"] for config in configs] == [network.shortcuts, {}]
    assert [config["label_noise"] for config in configs] == [network.label_noise, 0]
    assert configs[0]["shortcut_strength"] == network.strength
    assert load_shipped(tied).digest != load_shipped(clean).digest
    assert (tied / "README.md").is_file()


def test_a_network_is_trained_once_and_again_by_another_recipe(
    network: HeldOutNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_shipped(networks.trained_network(0, network)).digest
    train_and_save = classifier.train_and_save
    monkeypatch.setattr(classifier, "train_and_save", lambda *_: pytest.fail("trained again"))
    networks.trained_network(0, network)
    monkeypatch.setattr(classifier, "train_and_save", train_and_save)
    monkeypatch.setattr(networks, "RECIPE", (*TINY, "lr=0.1"))
    assert load_shipped(networks.trained_network(0, network)).digest != first


def test_an_interrupted_training_leaves_no_folder(
    network: HeldOutNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(networks, "write_model_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        networks.trained_network(0, network)
    assert not list((tmp_path / "seed0").iterdir())


@pytest.mark.parametrize("clean", [False, True])
def test_shared_images_are_those_of_the_training_script(network: HeldOutNetwork, clean: bool) -> None:
    arguments = networks.training_arguments(network.clean_twin if clean else network)
    cfg = classifier.load_settings([*arguments, "out=unused"])
    shared, rendered = networks.training_images(cfg), load_labeled_images(cfg, "train", cfg.images)
    for name in ("images", "targets", "has_cue"):
        assert torch.equal(getattr(shared, name), getattr(rendered, name)), name
    assert shared.heads == rendered.heads


def test_each_network_is_followed_by_its_twin() -> None:
    assert [network.name.endswith("_clean") for network in networks.suite_networks(3, 2)] == [False, True] * 2
