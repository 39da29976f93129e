"""Records of effects, as results and pages hold them, and the rules by which an effect is a shortcut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NotRequired, TypedDict

from classifier_lens.runner.result_schema import Label
from classifier_lens.tasks.interventions.effects import Share
from classifier_lens.tasks.interventions.overlay_effects import OverlayEffect
from classifier_lens.tasks.interventions.phrase_effects import PairedEffect, PhraseEffect

SIGNIFICANCE = 0.05  # of corrected p-values
PHRASES, OVERLAY = "phrases", "overlay"


class PhraseRow(TypedDict):
    """A phrase and its effect on the probability of the class, 1 for the largest possible one."""

    concept: Annotated[str, Label("Phrase")]
    factor: Annotated[str, Label("Factor")]
    effect: Annotated[float, Label("Effect on the probability")]
    interval: Annotated[list[float], Label("95\u00a0% interval")]
    p_value: Annotated[float, Label("Corrected p-value")]
    effect_on_class: Annotated[float, Label("In images of the class")]
    effect_on_similar_class: Annotated[float, Label("In images of the similar class")]
    share_generated: Annotated[float | None, Label("Share of images that show it")]
    tested: Annotated[bool, Label("Tested")]
    found: Annotated[bool, Label("Shortcut")]


class PairRow(TypedDict):
    """The effect of a phrase in matched pairs."""

    concept: Annotated[str, Label("Phrase")]
    paired_effect: Annotated[float, Label("Effect in matched pairs")]
    interval: Annotated[list[float], Label("95\u00a0% interval")]
    sufficiency: Annotated[float | None, Label("Probability of sufficiency")]
    sufficiency_interval: Annotated[list[float], Label("95\u00a0% interval of sufficiency")]
    necessity: Annotated[float | None, Label("Probability of necessity")]
    necessity_interval: Annotated[list[float], Label("95\u00a0% interval of necessity")]


class OverlayRow(TypedDict):
    """A class and the effect of the overlay on it."""

    class_name: Annotated[str, Label("Class")]
    rank: Annotated[int, Label("Rank among all classes")]
    log_odds_change: Annotated[float, Label("Change of the log-odds")]
    interval: Annotated[list[float], Label("95\u00a0% interval")]
    p_value: Annotated[float, Label("Corrected p-value")]
    probability_change: Annotated[float, Label("Change of the probability")]
    found: Annotated[bool, Label("Shortcut")]


class ConceptEffectRecord(TypedDict):
    """kind: `phrases` of a class, or an `overlay`; found: the concepts that are shortcuts of the class, or the classes
    that the overlay is a shortcut of."""

    kind: Annotated[str, Label("Concepts")]
    found: list[str]
    num_images: Annotated[int, Label("Images")]
    effects: Annotated[list[PhraseRow] | list[OverlayRow], Label("Effects, largest first")]
    # Of phrases.
    target: NotRequired[Annotated[str, Label("Class")]]
    similar_class: NotRequired[Annotated[str, Label("Similar class")]]
    recall: NotRequired[Annotated[float, Label("Images of the class that are predicted as it")]]
    pairs: NotRequired[Annotated[list[PairRow], Label("Matched pairs")]]
    untested: NotRequired[list[str]]
    detectable_effect: NotRequired[Annotated[float, Label("Smallest effect that would be detected")]]
    # Of an overlay.
    overlay: NotRequired[Annotated[str, Label("Overlay")]]
    is_control: NotRequired[Annotated[bool, Label("Control")]]
    is_damage: NotRequired[Annotated[bool, Label("Damages the whole image")]]
    accuracy_without: NotRequired[Annotated[float | None, Label("Accuracy without the overlay")]]
    accuracy_with: NotRequired[Annotated[float | None, Label("Accuracy with the overlay")]]


class ConceptEffectSummary(TypedDict):
    """shortcuts: a row per shortcut, the largest effect first."""

    results: Annotated[int, Label("Results")]
    shortcuts: Annotated[list[dict[str, object]], Label("Shortcuts")]
    classes: Annotated[int, Label("Classes tested with phrases")]
    overlays: Annotated[int, Label("Overlays tested")]


def phrase_row(effect: PhraseEffect, effect_threshold: float, min_share_generated: float) -> PhraseRow:
    """A phrase is a shortcut if it raises the probability by `effect_threshold` or more, with a corrected p-value below
    `SIGNIFICANCE`. It is tested if the generator shows it in `min_share_generated` of the images."""
    share, value = effect.share_generated, effect.effect
    tested = share is None or share >= min_share_generated
    return {
        "concept": effect.phrase, "factor": effect.factor,
        "effect": value.value, "interval": [value.low, value.high], "p_value": value.p_value,
        "effect_on_class": effect.on_class.value, "effect_on_similar_class": effect.on_similar_class.value,
        "share_generated": share, "tested": tested,
        "found": tested and value.value >= effect_threshold and value.p_value < SIGNIFICANCE,
    }  # fmt: skip


def pair_row(phrase: str, pair: PairedEffect) -> PairRow:
    """Shares of no image are None."""

    def value(share: Share) -> float | None:
        return share.value if share.count else None

    return {
        "concept": phrase, "paired_effect": pair.effect.value, "interval": [pair.effect.low, pair.effect.high],
        "sufficiency": value(pair.sufficiency),
        "sufficiency_interval": [pair.sufficiency.low, pair.sufficiency.high],
        "necessity": value(pair.necessity),
        "necessity_interval": [pair.necessity.low, pair.necessity.high],
    }  # fmt: skip


def overlay_row(effect: OverlayEffect, labels: Sequence[str], log_odds_threshold: float) -> OverlayRow:
    """An overlay is a shortcut of a class if it raises its log-odds by `log_odds_threshold` or more, with a corrected
    p-value below `SIGNIFICANCE`."""
    value = effect.effect
    return {
        "class_name": labels[effect.label], "rank": effect.rank,
        "log_odds_change": value.value, "interval": [value.low, value.high], "p_value": value.p_value,
        "probability_change": effect.probability_change,
        "found": value.value >= log_odds_threshold and value.p_value < SIGNIFICANCE,
    }  # fmt: skip
