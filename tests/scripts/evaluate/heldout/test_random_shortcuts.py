"""Random shortcuts are determined by the seed and cover what the suite promises."""

from __future__ import annotations

import pytest
import timm
import torch

from classifier_lens.data import planted
from classifier_lens.data.planted.cues import PLANTED_FACTORS
from classifier_lens.data.shortcuts import check_shortcuts
from classifier_lens.scripts.evaluate.heldout.architectures import ARCHITECTURES
from classifier_lens.scripts.evaluate.heldout.random_shortcuts import MAX_CLASSES, HeldOutNetwork, held_out_network

SEEDS = range(12)


def suite(seed: int, n: int = 20) -> list[HeldOutNetwork]:
    return [held_out_network(seed, index) for index in range(n)]


def test_a_network_depends_on_the_seed_and_its_index_alone() -> None:
    assert suite(1) == suite(1) and suite(1, 3) == suite(1)[:3]
    assert all(a.shortcuts != b.shortcuts for a, b in zip(suite(1), suite(2), strict=True))
    assert len({network.name for network in suite(1)}) == 20


@pytest.mark.parametrize("seed", SEEDS)
def test_shortcuts_are_valid_strong_and_unambiguous(seed: int) -> None:
    for network in suite(seed):
        check_shortcuts(network.shortcuts, PLANTED_FACTORS)
        assert 1 <= len(network.shortcuts) <= MAX_CLASSES and network.strength.keys() == network.shortcuts.keys()
        assert all(0.8 <= strength <= 1 for strength in network.strength.values())
        values = [item for cue in network.shortcuts.values() for item in cue.items()]
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_suite_of_eight_has_eight_families_every_number_of_classes_and_two_cues_on_a_class(seed: int) -> None:
    networks = suite(seed, 8)
    assert len({network.family for network in networks}) == 8
    assert {len(network.shortcuts) for network in networks} == set(range(1, MAX_CLASSES + 1))
    num_with_two = sum(any(len(cue) == 2 for cue in network.shortcuts.values()) for network in networks)
    assert num_with_two in (2, 3)
    assert {factor for network in networks for cue in network.shortcuts.values() for factor in cue} == {
        "background", "prop", "hue",
    }  # fmt: skip


def test_a_clean_twin_has_no_shortcut_and_is_otherwise_equal() -> None:
    network = held_out_network(0, 0)
    twin = network.clean_twin
    assert (twin.family, twin.seed) == (network.family, network.seed) and twin.name == f"{network.name}_clean"
    assert not twin.shortcuts and not twin.strength and twin.label_noise == 0 < network.label_noise


def test_training_scenes_are_in_no_split() -> None:
    scene_seeds = {planted.SPLIT_SEEDS["train"] + network.seed for seed in range(100) for network in suite(seed, 12)}
    assert len(scene_seeds) == 200 and all(seed % 1000 for seed in scene_seeds)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_an_architecture_reads_images_of_64_px_and_is_small(family: str) -> None:
    architecture = ARCHITECTURES[family]
    network = timm.create_model(architecture.name, num_classes=10, **architecture.kwargs).eval()
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) < 3e6
