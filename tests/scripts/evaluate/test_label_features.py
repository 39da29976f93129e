"""What rendering says of features, for pictures whose colours are their factors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from classifier_lens.data import planted
from classifier_lens.data.planted import Rendering, SceneFactors
from classifier_lens.data.salient_imagenet import read_annotations
from classifier_lens.models.classifier.loaders.shipped import SHIPPED_FOLDER, load_shipped
from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.scripts.evaluate.label_features import label_features, main, spurious_variance_shares
from tests.tasks.tiny import Colours, Pictures, classifier_of, colour

# Class 0 reads red, class 1 green and class 2 blue; blue reads red and green as well.
WEIGHTS = [[1.0, 0.0, 0.1], [0.0, 1.0, 0.1], [0.0, 0.0, 1.0]]


def coloured(scenes: SceneFactors) -> Rendering:
    """Red is the class, green the background and a little of the class, blue both alike."""
    of_class, ground = scenes.label / 9, scenes.background / 7
    blank = torch.zeros(len(scenes), 8, 8)
    image = torch.stack([of_class, ground + 0.1 * of_class, of_class + ground], dim=1)
    return Rendering(image[:, :, None, None].expand(-1, -1, 8, 8).float(), blank, blank, blank)


@pytest.fixture
def renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "render", coloured)


def variance(n: int) -> float:
    """Of 0, 1/n … 1, each as often."""
    return float((torch.arange(n) / (n - 1)).var(correction=0))


@pytest.mark.usefixtures("renders")
def test_the_shares_of_the_variance_are_those_of_the_factors() -> None:
    found = spurious_variance_shares(classifier_of(Colours(WEIGHTS)))
    of_class, ground = variance(10), variance(8)
    wanted = [0.0, ground / (ground + 0.01 * of_class), ground / (ground + of_class)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    assert 0.4 < wanted[2] < 0.6 < wanted[1]


def test_interactions_belong_to_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of two centred factors explains nothing by itself; what is added to it decides."""

    def product(scenes: SceneFactors) -> Rendering:
        image = coloured(scenes).image.clone()
        image[:, 0] = ((scenes.label / 9 - 0.5) * (scenes.background / 7 - 0.5) + 0.01 * scenes.prop)[:, None, None]
        return Rendering(image, *(torch.zeros(len(scenes), 8, 8) for _ in range(3)))

    monkeypatch.setattr(planted, "render", product)
    assert spurious_variance_shares(classifier_of(Colours(WEIGHTS)))[0].item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.usefixtures("renders")
def test_labels_are_written_in_the_columns_of_salient_imagenet(tmp_path: Path) -> None:
    training = Pictures(
        [colour(0.9, 0.1, 0.2), colour(0.1, 0.9, 0.2), colour(0, 0, 1)], ["rock crab", "viaduct", "urn"]
    )
    out = tmp_path / "labels" / "labels.csv"
    classifier: Any = classifier_of(Colours(WEIGHTS))
    left_out = label_features(classifier, training, 8, TensorCache(None), 2, out)
    found = read_annotations(str(out), [])
    # Of each class: its own colour first, then blue (0 and 1) or what is next (2); blue is unclear.
    said = {label: [(f.index, f.rank, f.is_core) for f in features] for label, features in found.features.items()}
    assert said[0] == [(0, 1, True)] and said[1] == [(1, 1, False)]
    assert left_out == 3 and all(rank == 2 for _, rank, _ in said.get(2, []))
    lines = Counter(line.split(",")[3] for line in out.read_text().splitlines()[1:])
    assert lines["main_object"] % 5 == 0 and lines["background"] % 5 == 0


@pytest.mark.slow
def test_the_shipped_labels_are_what_rendering_says() -> None:
    shares = spurious_variance_shares(load_shipped("planted_background_shortcut2"))
    known = read_annotations(str(SHIPPED_FOLDER / "planted_background_shortcut2" / "labels.csv"), [])
    said = [(feature.is_core, shares[feature.index].item()) for own in known.features.values() for feature in own]
    assert len(said) >= 30 and all(share < 0.4 if core else share > 0.6 for core, share in said)


@pytest.mark.parametrize(("argument", "said"), [("clasifier=x", "clasifier"), ("features=0", "features=0")])
def test_bad_input_is_one_line(argument: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
