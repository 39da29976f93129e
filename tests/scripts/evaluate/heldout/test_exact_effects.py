"""Exact effects: by hand, and those of shipped networks whose shortcuts are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from classifier_lens.data import planted
from classifier_lens.models.classifier.loaders.shipped import SHIPPED_FOLDER, load_shipped
from classifier_lens.scripts.evaluate.heldout import exact_effects as effects_module
from classifier_lens.scripts.evaluate.heldout.exact_effects import (
    Cell,
    effect_of_value,
    exact_effects,
    renders_by_value,
    saved_effects,
)


def test_the_effect_of_a_value_is_its_mean_minus_that_of_the_others() -> None:
    probability = torch.tensor([0.9, 0.1, 0.2, 0.3])
    assert effect_of_value(probability, 0) == pytest.approx(0.7)
    assert effect_of_value(probability, 1) == pytest.approx(0.1 - 1.4 / 3)
    assert effect_of_value(torch.full((5,), 0.4), 2) == pytest.approx(0)


def test_renders_differ_in_the_class_and_the_value_alone() -> None:
    images = renders_by_value("prop", 3)
    assert images.shape == (len(planted.CLASSES), len(planted.PROPS) + 1, 3, 3, 64, 64)
    scenes = planted.sample_scenes(3, effects_module.SCENE_SEED)
    without_prop = planted.render(scenes.with_factors(label=4, prop=planted.ABSENT)).image
    assert torch.equal(images[4, -1], (without_prop * 255).round().byte())


def test_networks_have_the_effects_of_their_shortcuts_alone() -> None:
    tied, clean = (exact_effects(load_shipped(name), 3) for name in ("planted_shortcut", "planted_clean"))
    shortcuts = {Cell(name, *cue) for name, cue in planted.SHORTCUTS.items()}
    assert len(tied) == 10 * (8 + 4 + 6) and shortcuts <= set(tied)
    assert all(tied[cell] > 0.3 for cell in shortcuts)
    assert all(abs(effect) < 0.3 for cell, effect in clean.items())
    assert sorted(tied, key=lambda cell: -tied[cell])[:4] == sorted(shortcuts, key=lambda cell: -tied[cell])


def test_effects_are_computed_once_per_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(SHIPPED_FOLDER / "planted_weak", tmp_path / "network")
    cell = Cell("viaduct", "hue", "red")
    monkeypatch.setattr(effects_module, "exact_effects", lambda _: {cell: 0.5})
    assert saved_effects(folder) == {cell: 0.5}
    monkeypatch.setattr(effects_module, "exact_effects", lambda _: {cell: 0.7})
    assert saved_effects(folder) == {cell: 0.5}
    path = folder / effects_module.EFFECTS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": "of another network"}))
    assert saved_effects(folder) == {cell: 0.7}
