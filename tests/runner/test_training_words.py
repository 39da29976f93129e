"""What units are ranked on, where the command only chooses the images."""

from __future__ import annotations

import pytest

from data.planted import CLASSES
from models.diffusion import LatentDiffusion
from runner.compose import configure
from runner.overrides import with_training
from runner.types import UserError
from tasks.ranking import check_training


class Labelled:
    """As much of a classifier or of a data set as its labels."""

    def __init__(self, *labels: str) -> None:
        self.labels = labels


@pytest.mark.parametrize(
    ("words", "added"),
    [
        ([], []),
        (["data=folder", "data.path=a"], ["data@training=folder", "training.path=a"]),
        (["data=hf", "data.name=a", "data.count=3"], ["data@training=hf", "training.name=a", "training.count=3"]),
        (["data=folder", "data.path=a", "data@training=folder", "training.path=b"], []),
        (["data=cifar10", "data.path=a", "data.count=3"], ["data@training=cifar10_train", "training.path=a"]),
        (["data=planted", "data.count=3"], ["data@training=planted_train"]),
        (["data=image", "data.path=a", "data.label=b"], []),
        (["classifier=vit_b", "data.path=a"], ["training.path=a"]),
        (["classifier=vit_b", "data.path=a", "training.path=b"], []),
        (["data=fodler"], []),
        (["-m", "data=folder", "data.path=a,b"], ["data@training=folder"]),
    ],
    ids=str,
)
def test_the_runs_own_images_are_the_default(words: list[str], added: list[str]) -> None:
    assert with_training(words) == [*words, *added]


def test_it_composes() -> None:
    training = configure(["task=neuron_vis", "data=folder", "data.path=mine"])["task"]["training"]
    assert (training["_target_"], training["path"]) == ("data.folder.ImageFolder", "mine")
    assert configure(["classifier=vit_b", "data.path=val"])["training"]["path"] == "val"
    assert configure([])["training"]["count"] == 20000


def test_images_of_another_world_are_refused() -> None:
    check_training(Labelled("cat", "Fiddler Crab"), Labelled(*CLASSES))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="training: its images show fiddler crab, .*none of .*cat, dog.*training.path="):
        check_training(Labelled("cat", "dog"), Labelled(*CLASSES))  # type: ignore[arg-type]


def test_small_generators_say_what_they_draw() -> None:
    from data import cifar10

    assert configure([])["generator"]["draws"] == list(CLASSES)
    assert configure(["domain=cifar10", "sampler=lcm"])["generator"]["draws"] == list(cifar10.CLASSES)
    assert LatentDiffusion.draws is None
