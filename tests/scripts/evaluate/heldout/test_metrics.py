"""Metrics of the held-out suite, with networks that are not trained and a tool whose results are written here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from classifier_lens.data import planted
from classifier_lens.models.classifier.loaders.shipped import SHIPPED_FOLDER
from classifier_lens.scripts.evaluate import evaluate
from classifier_lens.scripts.evaluate.heldout import metrics
from classifier_lens.scripts.evaluate.heldout.exact_effects import Cell, Effects
from classifier_lens.scripts.evaluate.heldout.findings import ToolResult
from classifier_lens.scripts.evaluate.heldout.random_shortcuts import HeldOutNetwork, held_out_network
from classifier_lens.scripts.evaluate.metric import Setting

SETTING = Setting(5, "cpu", "outputs/unused")


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that have learned all their shortcuts, with a folder that is not there."""
    monkeypatch.setattr(metrics, "trained_network", lambda seed, network: Path(f"seed{seed}") / network.name)
    monkeypatch.setattr(metrics, "saved_effects", lambda folder: learned_effects(network_at(folder)))


def network_at(folder: Path) -> HeldOutNetwork:
    assert folder.parent.name == "seed5"
    network = held_out_network(5, int(folder.name[:2]))
    return network.clean_twin if folder.name.endswith("_clean") else network


def cells(network: HeldOutNetwork) -> list[Cell]:
    return [Cell(name, *item) for name, cue in network.shortcuts.items() for item in cue.items()]


def learned_effects(network: HeldOutNetwork) -> Effects:
    none = {Cell(name, "hue", hue): 0.0 for name in planted.CLASSES for hue in planted.HUES}
    return none | dict.fromkeys(cells(network), 0.6)


def perfect_tool(setting: Setting, folder: Path) -> ToolResult:
    """Reports every shortcut and the exact effects, to a tenth."""
    network = network_at(folder)
    effects = {cell: effect + 0.1 for cell, effect in learned_effects(network).items()}
    return ToolResult({name: list(cue.items()) for name, cue in network.shortcuts.items()}, effects)


def blind_tool(setting: Setting, folder: Path) -> ToolResult:
    """Reports that a viaduct is red, of every network."""
    return ToolResult({"viaduct": [("hue", "red")]}, {})


def test_a_perfect_tool_has_perfect_scores() -> None:
    assert metrics.learned_rate(SETTING, 3).value == 1
    assert metrics.recall(SETTING, 3, perfect_tool).value == metrics.right_values(SETTING, 3, perfect_tool).value == 1
    assert {metrics.false_alarms(SETTING, 3, clean, perfect_tool).value for clean in (False, True)} == {0}
    assert metrics.effect_difference(SETTING, 3, perfect_tool).value == pytest.approx(0.1)
    assert metrics.effect_rank_correlation(SETTING, 3, perfect_tool).value == pytest.approx(1)


def test_clean_twins_are_measured_on_their_own() -> None:
    assert metrics.false_alarms(SETTING, 3, True, blind_tool).value == pytest.approx(0.1)  # one of ten classes
    assert metrics.false_alarms(SETTING, 3, True, blind_tool).note.count("_clean viaduct: red") == 3
    assert metrics.recall(SETTING, 3, blind_tool).value < 1


def test_the_task_runs_with_its_defaults_on_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    record = {
        "kind": "phrases", "target": "viaduct",
        "effects": [{"concept": "red", "effect": 0.5, "found": True, "tested": True}],
    }  # fmt: skip

    def compute_results(*arguments: Any) -> list[Any]:
        runs.append(arguments)
        return [SimpleNamespace(record=record), SimpleNamespace(record=None)]

    monkeypatch.setattr(metrics, "compute_results", compute_results)
    result = metrics.concept_effects(SETTING, Path("folder"))
    assert result.found == {"viaduct": [("hue", "red")]} and result.effects == {Cell("viaduct", "hue", "red"): 0.5}
    assert runs == [(SETTING, "trained", ("task=concept_effect", "classifier.path=folder", "seed=5"), 10)]


def test_accuracy_is_that_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(("planted_clean", "planted_weak"))
    monkeypatch.setattr(metrics, "trained_network", lambda *_: SHIPPED_FOLDER / next(names))
    monkeypatch.setattr(metrics, "TEST_RENDERS", 60)
    metrics.accuracy_renders.cache_clear()
    estimate = metrics.accuracy(SETTING, 2, False)
    metrics.accuracy_renders.cache_clear()
    assert 0.75 < estimate.low < estimate.value < estimate.high <= 1
    assert estimate.note.endswith(held_out_network(5, 1).name)


def test_every_metric_is_registered() -> None:
    assert {metric.name for metric in evaluate.METRICS if metric.name.startswith("heldout.")} == {
        metric.name for metric in metrics.METRICS
    }
