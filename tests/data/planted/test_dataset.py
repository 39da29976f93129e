"""The planted world as a data set."""

from __future__ import annotations

import pytest
import torch

from classifier_lens.data.planted import (
    BACKGROUNDS,
    CLASSES,
    HUES,
    PAIRS,
    PROPS,
    SHORTCUTS,
    SPLIT_SEEDS,
    PlantedDataset,
    caption,
    render,
    sample_scenes,
    split_seed,
)
from classifier_lens.runner.protocols import Dataset
from classifier_lens.runner.types import UserError


def test_images_are_those_of_the_sampled_scenes() -> None:
    data: Dataset = PlantedDataset("test", 20, 0, "independent", None)
    scenes = sample_scenes(20, SPLIT_SEEDS["test"])
    images = render(scenes).image
    assert len(data) == 20 and data.labels == CLASSES
    for i in (0, 12, 19):
        example = data[i]
        assert example.name == f"test-{i:05d}"
        assert example.label == CLASSES[int(scenes.label[i])]
        assert example.caption == caption(scenes, i)
        assert torch.equal(example.image, (images[i] * 255).round() / 255)


def test_images_do_not_depend_on_the_count() -> None:
    few, many = (
        PlantedDataset("validation", 3, 5, "independent", None),
        PlantedDataset("validation", 200, 5, "independent", None),
    )
    assert all(torch.equal(few[i].image, many[i].image) for i in range(3))


def test_ground_truth_belongs_to_the_image() -> None:
    data = PlantedDataset("test", 10, 0, "independent", None)
    scenes, rendered = data.ground_truth(7)
    assert len(scenes) == 1 and rendered.object_mask.shape == (1, 64, 64)
    assert data[7].label == CLASSES[int(scenes.label)]
    assert float((rendered.image[0] - data[7].image).abs().max()) <= 0.5 / 255 + 1e-6


def test_seeds_and_splits_share_no_images() -> None:
    seeds = [split_seed(split, seed) for split in SPLIT_SEEDS for seed in range(50)]
    assert len(set(seeds)) == len(seeds)
    images = [PlantedDataset("test", 1, seed, "independent", None)[0].image for seed in (0, 1)]
    assert not torch.equal(*images)


def test_nearest_class_is_the_other_of_the_pair() -> None:
    data = PlantedDataset("test", 1, 0, "independent", None)
    for a, b in PAIRS:
        assert data.nearest_class(a) == b and data.nearest_class(b) == a
        assert data.similar_classes(a) == [b] and data.similar_classes(b) == [a]
    assert data.nearest_class("goldfish") is None and data.similar_classes("goldfish") == []


def test_without_a_count_is_the_whole_split() -> None:
    assert len(PlantedDataset("validation", None, 0, "independent", None)) == 2_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("exam", 5, 0, "independent"), "data.split=exam: allowed are train, validation, test"),
        (("test", 0, 0, "independent"), "data.count=0: allowed are 1 to 10000"),
        (("test", 10_001, 0, "independent"), "data.count=10001: allowed are 1 to 10000"),
        (("test", 5, -1, "independent"), "seed=-1: allowed are 0 and above"),
        (("test", 5, 0, "seen"), "data.cues=seen: allowed are independent, present, absent"),
    ],
)
def test_wrong_settings_are_refused(arguments: tuple[str, int, int, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PlantedDataset(*arguments, None)


def test_cues_are_shown_hidden_or_independent() -> None:
    independent_cues, with_cues, without_cues = (
        PlantedDataset("test", 400, 0, cues, None) for cues in ("independent", "present", "absent")
    )
    independent = sample_scenes(400, SPLIT_SEEDS["test"])
    assert torch.equal(independent_cues.scenes.background, independent.background)
    assert torch.equal(independent_cues.scenes.prop, independent.prop)
    for name, (factor, cue) in SHORTCUTS.items():
        value = {"background": BACKGROUNDS, "prop": PROPS}[factor].index(cue)
        by_chance, with_cue, without = (
            getattr(d.scenes, factor)[d.indices(name)] for d in (independent_cues, with_cues, without_cues)
        )
        assert 0 < (by_chance == value).sum() < len(by_chance)
        assert (with_cue == value).all() and not (without == value).any()
        assert torch.equal(without[by_chance != value], by_chance[by_chance != value])
    other_classes = [i for name in CLASSES if name not in SHORTCUTS for i in independent_cues.indices(name)]
    for other in (with_cues, without_cues):
        assert torch.equal(independent_cues.scenes.label, other.scenes.label)
        assert torch.equal(independent_cues.scenes.background[other_classes], other.scenes.background[other_classes])
        assert torch.equal(independent_cues.scenes.prop[other_classes], other.scenes.prop[other_classes])


def test_any_class_can_have_a_cue() -> None:
    shortcuts = {"viaduct": {"hue": "red"}, "fiddler crab": {"prop": "flag"}}
    data = PlantedDataset("test", 200, 0, "present", shortcuts)
    assert (data.scenes.hue[data.indices("viaduct")] == HUES.index("red")).all()
    assert (data.scenes.prop[data.indices("fiddler crab")] == PROPS.index("flag")).all()
    planted_cues = PlantedDataset("test", 200, 0, "present", None)
    assert not (data.scenes.background[data.indices("fiddler crab")] == BACKGROUNDS.index("sand")).all()
    assert data.digest != planted_cues.digest
    with pytest.raises(UserError, match=r"shortcuts.viaduct.hue=orange: "):
        PlantedDataset("test", 5, 0, "present", {"viaduct": {"hue": "orange"}})
