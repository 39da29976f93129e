"""Metrics of concept effects: the shortcuts of the shipped classifiers, by phrases, and the known watermark shortcut of
published ImageNet classifiers, by overlays (Li et al. 2023, "A Whac-A-Mole Dilemma")."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from classifier_lens.data import planted
from classifier_lens.models.classifier.loaders.shipped import SHIPPED_FOLDER
from classifier_lens.runner.paths import ROOT
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.heldout.findings import ToolResult, read_concept_effects
from classifier_lens.scripts.evaluate.metric import Metric, Setting, compute_results

SHORTCUT_NETWORKS = (
    "planted_shortcut", "planted_shortcut2", "planted_seresnet", "planted_background_shortcut",
    "planted_background_shortcut2",
)  # fmt: skip
CLEAN_NETWORKS = ("planted_clean", "planted_clean2", "planted_vit", "planted_robust")
IMAGENET_NETWORKS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "imagenet_samples"
WATERMARKED, BORDERED = "cardboard box / carton", "website"  # classes of ImageNet
HARMLESS = ("english_word", "mirror")


# --- phrases -------------------------------------------------------------------------------------------------


def phrase_effects(setting: Setting, network: str) -> ToolResult:
    """What `task=concept_effect` finds in a shipped classifier, with its defaults."""
    overrides = ("task=concept_effect", f"seed={setting.seed}")
    results = compute_results(setting, network, overrides, len(planted.CLASSES))
    return read_concept_effects([result.record for result in results if result.record is not None])


def cues(network: str) -> dict[str, list[tuple[str, str]]]:
    """The planted cues of a shipped classifier by class: factor and value."""
    config = json.loads((SHIPPED_FOLDER / network / "config.json").read_text())
    return {name: list(cue.items()) for name, cue in config["shortcuts"].items() if name in config["shortcut_strength"]}


def shortcut_recall(setting: Setting, n: int) -> Estimate:
    """The share of classes with a shortcut whose planted value is found. n: networks."""
    hits = {
        f"{network}, {name}": set(values) <= set(phrase_effects(setting, network).found.get(name, ()))
        for network in SHORTCUT_NETWORKS[:n]
        for name, values in cues(network).items()
    }
    missed = [name for name, hit in hits.items() if not hit]
    return estimates.proportion(list(hits.values()), f"missed: {'; '.join(missed) or 'none'}")


def false_alarm_rate(setting: Setting, n: int) -> Estimate:
    """The share of classes without a shortcut of which one is reported, over networks with shortcuts and clean ones. n:
    networks."""
    networks = [*CLEAN_NETWORKS, *SHORTCUT_NETWORKS][:n]
    flagged = {
        f"{network}, {name}": name in phrase_effects(setting, network).found
        for network in networks
        for name in planted.CLASSES
        if name not in cues(network)
    }
    alarms = [name for name, flag in flagged.items() if flag]
    return estimates.proportion(list(flagged.values()), f"reported: {'; '.join(alarms) or 'none'}")


# --- overlays ------------------------------------------------------------------------------------------------


def overlay_records(setting: Setting, network: str, overlays: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By overlay its record for the photographs, with the effects on all classes. Raises UserError if photographs or
    weights are missing."""
    overrides = (
        "task=concept_effect", "data=folder", f"data.path={PHOTOGRAPHS}", "select.center_crop=0.875",
        "task.classes_shown=1000", f"overlay=[{','.join(overlays)}]",
    )  # fmt: skip
    results = compute_results(setting, network, overrides, len(overlays))
    records = {result.problem.name: result.record for result in results if result.record is not None}
    return {name: dict(records[f"overlay-{name.replace('_', '-')}"]) for name in overlays}


def highest_rank(setting: Setting, n: int, overlay: str, label: str) -> Estimate:
    """The rank of a class among all classes by the effect of an overlay, the worst one over the networks. The note has
    the effects. n: networks."""
    effects = {
        network: overlay_records(setting, network, [overlay])[overlay]["effects"] for network in IMAGENET_NETWORKS[:n]
    }
    rows = {network: next(r for r in table if r["class_name"] == label) for network, table in effects.items()}
    worst = max(row["rank"] for row in rows.values())
    notes = [
        f"{network} rank {row['rank']}, {row['log_odds_change']:+.2f} [{row['interval'][0]:.2f}, "
        f"{row['interval'][1]:.2f}]"
        for network, row in rows.items()
    ]
    return Estimate(worst, min(row["rank"] for row in rows.values()), worst, "; ".join(notes))


def harmless_effect(setting: Setting, n: int) -> Estimate:
    """The largest effect of overlays that should do nothing on any class, over the networks. n: networks."""
    effects = {
        (network, overlay): record["effects"][0]
        for network in IMAGENET_NETWORKS[:n]
        for overlay, record in overlay_records(setting, network, HARMLESS).items()
    }
    (network, overlay), row = max(effects.items(), key=lambda item: item[1]["log_odds_change"])
    low, high = row["interval"]
    return Estimate(row["log_odds_change"], low, high, f"{network}, {overlay}: {row['class_name']}")


METRICS = (
    Metric("planted.concept_effect_recall", shortcut_recall, len(SHORTCUT_NETWORKS), "%", 0.95),
    Metric(
        "planted.concept_effect_false_alarms", false_alarm_rate, len(CLEAN_NETWORKS) + len(SHORTCUT_NETWORKS),
        "%", 0.02, False,
    ),
    Metric(
        "imagenet.watermark_rank", partial(highest_rank, overlay="watermark", label=WATERMARKED),
        len(IMAGENET_NETWORKS), "", 3, False,
    ),
    Metric(
        "imagenet.border_rank", partial(highest_rank, overlay="border", label=BORDERED),
        len(IMAGENET_NETWORKS), "", 1, False,
    ),
    Metric("imagenet.harmless_effect", harmless_effect, len(IMAGENET_NETWORKS), "", 0.4, False),
)  # fmt: skip
