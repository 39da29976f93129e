"""Metrics of the held-out suite: whether a tool, with its defaults, finds the shortcuts that networks have learned.

n is the number of networks with shortcuts; each has a clean twin in addition.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path

from classifier_lens.data import planted
from classifier_lens.models.classifier.loaders.shipped import load_shipped
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.heldout import scores
from classifier_lens.scripts.evaluate.heldout.exact_effects import Cell, saved_effects
from classifier_lens.scripts.evaluate.heldout.findings import ToolResult, read_concept_effects
from classifier_lens.scripts.evaluate.heldout.networks import trained_network
from classifier_lens.scripts.evaluate.heldout.random_shortcuts import HeldOutNetwork, held_out_network
from classifier_lens.scripts.evaluate.heldout.scores import NetworkTruth
from classifier_lens.scripts.evaluate.metric import Metric, Setting, compute_results
from classifier_lens.scripts.train.labeled_images import LabeledImages, render_labeled_images
from classifier_lens.scripts.train.measure_classifier import accuracies

NUM_NETWORKS = 8
TEST_RENDERS = 1000  # for the accuracy

Tool = Callable[[Setting, Path], ToolResult]  # takes the folder of a network


def suite(setting: Setting, n: int, clean: bool) -> dict[str, HeldOutNetwork]:
    """The first `n` networks of the setting's seed, or their clean twins, by name."""
    networks = [held_out_network(setting.seed, index) for index in range(n)]
    return {network.name: network for network in (x.clean_twin if clean else x for x in networks)}


def folders(setting: Setting, n: int, clean: bool) -> dict[str, Path]:
    """The folders of these networks, which are trained first unless they are."""
    with redirect_stdout(sys.stderr):
        return {name: trained_network(setting.seed, network) for name, network in suite(setting, n, clean).items()}


def suite_truth(setting: Setting, n: int, clean: bool) -> dict[str, NetworkTruth]:
    """The shortcuts and exact effects of these networks."""
    networks = suite(setting, n, clean)
    return {
        name: NetworkTruth(
            [
                Cell(label, factor, value)
                for label, cue in networks[name].shortcuts.items()
                for factor, value in cue.items()
            ],
            saved_effects(folder),
        )
        for name, folder in folders(setting, n, clean).items()
    }


# --- tools ---------------------------------------------------------------------------------------------------


def concept_effects(setting: Setting, folder: Path) -> ToolResult:
    """The result of `task=concept_effect` with its defaults, for all classes."""
    overrides = ("task=concept_effect", f"classifier.path={folder}", f"seed={setting.seed}")
    results = compute_results(setting, "trained", overrides, len(planted.CLASSES))
    return read_concept_effects([result.record for result in results if result.record is not None])


def tool_results(setting: Setting, n: int, clean: bool, tool: Tool) -> dict[str, ToolResult]:
    """What a tool reports of each network."""
    return {name: tool(setting, folder) for name, folder in folders(setting, n, clean).items()}


def findings(setting: Setting, n: int, clean: bool, tool: Tool) -> scores.Findings:
    """The shortcuts that a tool reports, by network and class."""
    return {
        (network, label): values
        for network, result in tool_results(setting, n, clean, tool).items()
        for label, values in result.found.items()
    }


# --- metrics -------------------------------------------------------------------------------------------------


@cache
def accuracy_renders() -> LabeledImages:
    """Renders without shortcuts that no network was trained on."""
    return render_labeled_images(TEST_RENDERS, planted.SPLIT_SEEDS["test"], ["class"], {"object": 1.0}, {}, 0.0)


def accuracy(setting: Setting, n: int, clean: bool) -> Estimate:
    """The accuracy on renders without shortcuts, mean over networks. The note has the lowest one."""
    values = {
        name: accuracies(load_shipped(folder), accuracy_renders(), accuracy_renders().images)["class"]
        for name, folder in folders(setting, n, clean).items()
    }
    lowest = min(values, key=lambda name: values[name])
    return estimates.mean(list(values.values()), f"lowest {100 * values[lowest]:.1f} %, {lowest}")


def learned_rate(setting: Setting, n: int) -> Estimate:
    """See `scores.learned_rate`."""
    return scores.learned_rate(suite_truth(setting, n, False))


def recall(setting: Setting, n: int, tool: Tool) -> Estimate:
    """See `scores.recall`."""
    return scores.recall(suite_truth(setting, n, False), findings(setting, n, False, tool))


def right_values(setting: Setting, n: int, tool: Tool) -> Estimate:
    """See `scores.right_values`."""
    return scores.right_values(suite_truth(setting, n, False), findings(setting, n, False, tool))


def false_alarms(setting: Setting, n: int, clean: bool, tool: Tool) -> Estimate:
    """See `scores.false_alarms`."""
    return scores.false_alarms(suite_truth(setting, n, clean), findings(setting, n, clean, tool))


def effect_difference(setting: Setting, n: int, tool: Tool) -> Estimate:
    """See `scores.effect_difference`."""
    return scores.effect_difference(suite_truth(setting, n, False), _effects(setting, n, tool))


def effect_rank_correlation(setting: Setting, n: int, tool: Tool) -> Estimate:
    """See `scores.effect_rank_correlation`."""
    return scores.effect_rank_correlation(suite_truth(setting, n, False), _effects(setting, n, tool))


def _effects(setting: Setting, n: int, tool: Tool) -> scores.EstimatedEffects:
    """The effects that a tool measures in the networks with shortcuts."""
    return {name: result.effects for name, result in tool_results(setting, n, False, tool).items()}


METRICS = (
    Metric("heldout.accuracy", partial(accuracy, clean=False), NUM_NETWORKS, "%"),
    Metric("heldout.accuracy.clean_twins", partial(accuracy, clean=True), NUM_NETWORKS, "%"),
    Metric("heldout.learned", learned_rate, NUM_NETWORKS, "%"),
    Metric("heldout.concept_effect_recall", partial(recall, tool=concept_effects), NUM_NETWORKS, "%", 0.95),
    Metric("heldout.concept_effect_right_values", partial(right_values, tool=concept_effects), NUM_NETWORKS, "%", 0.95),
    Metric(
        "heldout.concept_effect_false_alarms",
        partial(false_alarms, clean=False, tool=concept_effects), NUM_NETWORKS, "%", 0.02, False,
    ),
    Metric(
        "heldout.concept_effect_false_alarms.clean_twins",
        partial(false_alarms, clean=True, tool=concept_effects), NUM_NETWORKS, "%", 0.02, False,
    ),
    Metric(
        "heldout.concept_effect_difference",
        partial(effect_difference, tool=concept_effects), NUM_NETWORKS, "", 0.1, False,
    ),
    Metric(
        "heldout.concept_effect_rank_correlation",
        partial(effect_rank_correlation, tool=concept_effects), NUM_NETWORKS, "", 0.8,
    ),
)  # fmt: skip
