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

from data import planted
from models.zoo.shipped import load_shipped
from scripts import rows_bias
from scripts.judges import TIED
from scripts.rows import Answer, Setting

TINY = (
    "name=planted_shortcut", "images=100", "test=50", "steps=1", "batch=16", "device=cpu", "architecture=resnet10t",
    "kwargs={channels: [8, 8, 8, 8]}",
)  # fmt: skip


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(rows_bias, "RECIPE", TINY)
    monkeypatch.setattr(rows_bias, "RENDERS", 8)
    rows_bias.trained.cache_clear()
    return Setting(0, "cpu", str(tmp_path))


def test_there_is_one_classifier_per_strength_and_recipe_and_it_is_trained_once(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak, strong = (rows_bias.trained(setting, strength) for strength in (0.5, 0.99))
    assert set(json.loads((weak / "config.json").read_text())["strength"].items()) == {(name, 0.5) for name in TIED}
    assert load_shipped(weak).digest != load_shipped(strong).digest
    rows_bias.trained.cache_clear()
    monkeypatch.setattr(rows_bias.train_classifier, "main", lambda _: pytest.fail("trained again"))
    assert rows_bias.trained(setting, 0.5) == weak
    monkeypatch.setattr(rows_bias, "RECIPE", (*TINY, "seed=9"))
    monkeypatch.setattr(rows_bias.train_classifier, "main", lambda _: None)
    rows_bias.trained.cache_clear()
    assert rows_bias.trained(setting, 0.5) != weak


def test_a_bias_is_the_share_of_a_prompts_pictures_that_show_the_cue(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bright pictures show the cue and none the object: two of four, and one of two."""
    given = [
        portrait(TIED[0], (1.0, 0.0, 1.0, 0.0)),
        portrait(TIED[3], (0.0, 1.0)),
        Answer(None, None, None, None, None),
    ]

    def seen(setting: Setting, factor: str, images: Tensor, wanted: Sequence[str]) -> list[bool]:
        expected = {"background": "sand", "prop": "water jet"}
        assert factor == "class" or set(wanted) == {expected[factor]}
        return [factor != "class" and bool(image.mean() > 0.5) for image in images]

    monkeypatch.setattr(rows_bias, "answers", lambda *_: given)
    monkeypatch.setattr(rows_bias, "both", seen)
    found = rows_bias.bias(setting, 3, 0.5)
    assert found.value == 0.5
    assert found.note.startswith(
        "class seen in 0.0 %, activation score 75.0 %, of the name 25.0 %; recall with the cue"
    )
    given[0] = given[2]
    assert math.isnan(rows_bias.bias(setting, 3, 0.5).value)


def portrait(label: str, shades: Sequence[float]) -> Answer:
    """An answer whose pictures are of one shade each."""
    gallery = torch.tensor(shades)[:, None, None, None].expand(-1, 3, 4, 4)
    record = {"activation_score": 0.75, "rivals": {"class name": {"activation_score": 0.25}}}
    return Answer(SimpleNamespace(target=planted.CLASSES.index(label)), record, gallery[0], None, gallery)


def test_rows_are_named_after_the_strength() -> None:
    assert [row.name for row in rows_bias.ROWS] == [f"planted.bias_{s}" for s in (0, 50, 90, 99)]
