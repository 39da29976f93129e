"""Rows of planted biases, with classifiers that are hardly trained and answers that are written here."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.models.classifier.loaders.shipped import load_shipped
from classifier_lens.scripts.evaluate import shortcut_strength
from classifier_lens.scripts.evaluate.metric import Result, Setting
from classifier_lens.scripts.evaluate.oracles import SHORTCUT_CLASSES

TINY = (
    "name=planted_shortcut", "images=100", "test_images=50", "steps=1", "batch=16", "device=cpu",
    "architecture=resnet10t", "kwargs={channels: [8, 8, 8, 8]}",
)  # fmt: skip


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(shortcut_strength, "TRAINING_OVERRIDES", TINY)
    monkeypatch.setattr(shortcut_strength, "RENDERS_PER_CLASS", 8)
    shortcut_strength.trained_classifier.cache_clear()
    return Setting(0, "cpu", str(tmp_path))


def test_there_is_one_classifier_per_strength_and_recipe_and_it_is_trained_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak, strong = (shortcut_strength.trained_classifier(setting, strength) for strength in (0.5, 0.99))
    assert set(json.loads((weak / "config.json").read_text())["shortcut_strength"].items()) == {
        (name, 0.5) for name in SHORTCUT_CLASSES
    }
    assert load_shipped(weak).digest != load_shipped(strong).digest
    shortcut_strength.trained_classifier.cache_clear()
    monkeypatch.setattr(shortcut_strength.classifier, "main", lambda _: pytest.fail("trained again"))
    assert shortcut_strength.trained_classifier(setting, 0.5) == weak
    monkeypatch.setattr(shortcut_strength, "TRAINING_OVERRIDES", (*TINY, "seed=9"))
    monkeypatch.setattr(shortcut_strength.classifier, "main", lambda _: None)
    shortcut_strength.trained_classifier.cache_clear()
    assert shortcut_strength.trained_classifier(setting, 0.5) != weak


def test_a_bias_is_the_share_of_a_prompts_pictures_that_show_the_cue(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bright pictures show the cue and none the object: two of four, and one of two."""
    given = [
        portrait(SHORTCUT_CLASSES[0], (1.0, 0.0, 1.0, 0.0)),
        portrait(SHORTCUT_CLASSES[3], (0.0, 1.0)),
        Result(None, None, None, None, None),
    ]

    def seen(setting: Setting, factor: str, images: Tensor, wanted: Sequence[str]) -> list[bool]:
        expected = {"background": "sand", "prop": "water jet"}
        assert factor == "class" or set(wanted) == {expected[factor]}
        return [factor != "class" and bool(image.mean() > 0.5) for image in images]

    monkeypatch.setattr(shortcut_strength, "compute_results", lambda *_: given)
    monkeypatch.setattr(shortcut_strength, "oracles_confirm", seen)
    found = shortcut_strength.bias_cue_share(setting, 3, 0.5)
    assert found.value == 0.5
    assert found.note.startswith(
        "class seen in 0.0 %, activation score 75.0 %, of the class name 25.0 %; recall with the cue"
    )
    given[0] = given[2]
    assert math.isnan(shortcut_strength.bias_cue_share(setting, 3, 0.5).value)


def portrait(label: str, shades: Sequence[float]) -> Result:
    """An answer whose pictures are of one shade each."""
    gallery = torch.tensor(shades)[:, None, None, None].expand(-1, 3, 4, 4)
    record = {"activation_score": 0.75, "baseline_prompts": {"class_name": {"activation_score": 0.25}}}
    return Result(SimpleNamespace(target=planted.CLASSES.index(label)), record, gallery[0], None, gallery)


def test_rows_are_named_after_the_strength() -> None:
    assert [row.name for row in shortcut_strength.METRICS] == [f"planted.bias_{s}" for s in (0, 50, 90, 99)]
