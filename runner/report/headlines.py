"""The first sentence of a page: what a run found, in numbers over all its results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from classifier_lens.runner.report.findings import Names
from classifier_lens.runner.report.wording import count, percent, share_of, two_digits
from classifier_lens.tasks.input_gradients import NO_AUGMENTATION
from classifier_lens.tasks.interventions.effect_records import OVERLAY, PHRASES

Facts = Mapping[str, Any]  # of a result: the values of its task's `keys`


@dataclass(frozen=True)
class Headline:
    """keys: the values of a result that the sentence needs; sentence: made from these values of all results."""

    keys: tuple[str, ...]
    sentence: Callable[[Sequence[Facts], Names], str]


def _successes(facts: Sequence[Facts]) -> int:
    return sum(f["success"] is True for f in facts)


def counterfactuals(facts: Sequence[Facts], names: Names) -> str:
    confidence = median(f["confidence_after"][f["target"]] for f in facts)
    changed = share_of(_successes(facts), len(facts), "image", "is", "are")
    return f"{changed} now predicted as the target; median confidence {two_digits(confidence)}"


def disagreements(facts: Sequence[Facts], names: Names) -> str:
    gap = median(f["gap_after"] for f in facts)
    reached = f"In {_successes(facts)} of {count(len(facts), 'image')}"
    return (
        f"{reached} {names.classifier} and {names.second} disagree by the required confidence gap; "
        f"median gap {two_digits(gap)}"
    )


def visualizations(facts: Sequence[Facts], names: Names) -> str:
    exceeding = share_of(_successes(facts), len(facts), "image", "activates its unit", "activate their unit")
    shares = [f["activation_after"] / f["training_max"] for f in facts if f["training_max"] > 0]
    ratio = f"; median activation {percent(median(shares), 0)} of the training maximum" if shares else ""
    return f"{exceeding} more than every training image{ratio}"


def _steered(quantity: str, part: str) -> Callable[[Sequence[Facts], Names], str]:
    def sentence(facts: Sequence[Facts], names: Names) -> str:
        signs = {"max": 1, "min": -1}
        changes = [
            signs[f["direction"]] * (f[f"{quantity}_after"] - f[f"{quantity}_before"]) / f["training_std"]
            for f in facts if f["training_std"] > 0
        ]  # fmt: skip
        moved = share_of(_successes(facts), len(facts), "image", "changes its", "change their")
        typical = f"; median change {two_digits(median(changes), '+')} standard deviations" if changes else ""
        return f"{moved} {part} by the required amount{typical} in the required direction"

    return sentence


def class_explanations(facts: Sequence[Facts], names: Names) -> str:
    classes = len({f["target"] for f in facts})
    score = fmean(f["activation_score"] for f in facts)
    baselines = [
        p["class_name"]["activation_score"] for f in facts
        if isinstance(p := f["baseline_prompts"], Mapping) and "class_name" in p
    ]  # fmt: skip
    against = f", against {two_digits(fmean(baselines))} for the class name" if baselines else ""
    return (
        f"Images of the optimized prompts are predicted as their class with a mean activation score of "
        f"{two_digits(score)}{against} ({count(classes, 'class')})"
    )


def audits(facts: Sequence[Facts], names: Names) -> str:
    verdicts = Counter(f["verdict"] for f in facts)
    counts = ", ".join(f"{verdicts[kind]} {kind}" for kind in ("spurious", "core", "undecided"))
    agreeing = [f["agrees_with_annotation"] for f in facts if isinstance(f["agrees_with_annotation"], bool)]
    agreement = (
        f"; {sum(agreeing)} of {count(len(agreeing), 'verdict')} agree with human annotations" if agreeing else ""
    )
    mean_r = two_digits(fmean(f["r"] for f in facts))
    return f"Of {count(len(facts), 'feature')}: {counts}; mean r {mean_r}{agreement}"


def attention_shares(facts: Sequence[Facts], names: Names) -> str:
    share, area = (percent(fmean(f[key] for f in facts), 0) for key in ("share_on_object_class", "object_area"))
    return (
        f"{share} of the attention to the class name lies on the object, which covers {area} of the image "
        f"(mean of {count(len(facts), 'image')})"
    )


def gradient_shares(facts: Sequence[Facts], names: Names) -> str:
    with_object = [f for f in facts if isinstance(f["share_on_object"], Mapping)]
    if not with_object:
        return f"Gradients of {count(len(facts), 'image')}; no object was segmented"
    means = {name: fmean(f["share_on_object"][name] for f in with_object) for name in with_object[0]["share_on_object"]}
    area, best = fmean(f["object_area"] for f in with_object), max(means, key=lambda name: means[name])
    most = f"; most with {best.replace('_', ' ')}, {percent(means[best], 0)}" if best != NO_AUGMENTATION else ""
    return (
        f"Without augmentation {percent(means[NO_AUGMENTATION], 0)} of the gradient lies on the object, which covers "
        f"{percent(area, 0)} of the image{most} (mean of {count(len(with_object), 'image')})"
    )


def concept_effects(facts: Sequence[Facts], names: Names) -> str:
    classes = [f for f in facts if f["kind"] == PHRASES]
    overlays = [f for f in facts if f["kind"] == OVERLAY and not (f["is_control"] or f["is_damage"])]
    parts = []
    if classes:
        shortcuts = [
            f"{f['target']} ← “{row['concept']}” ({two_digits(row['effect'], '+')})"
            for f in classes for row in f["effects"] if row["found"]
        ]  # fmt: skip
        number = sum(bool(f["found"]) for f in classes)
        parts.append(f"{share_of(number, len(classes), 'class', 'depends', 'depend')} on a phrase" + _listed(shortcuts))
    if overlays:
        found = [
            f"{row['class_name']} ← {f['overlay']} (log-odds {two_digits(row['log_odds_change'], '+')})"
            for f in overlays for row in f["effects"][:1] if row["found"]
        ]  # fmt: skip
        number = sum(bool(f["found"]) for f in overlays)
        parts.append(f"{share_of(number, len(overlays), 'mark', 'raises', 'raise')} a class" + _listed(found))
    return ". ".join(parts)


def _listed(items: Sequence[str]) -> str:
    """The items after a colon, nothing without any."""
    return f": {', '.join(items)}" if items else ""


def plain(facts: Sequence[Facts], names: Names) -> str:
    """The sentence of an unknown task."""
    judged = [f for f in facts if isinstance(f["success"], bool)]
    if judged:
        return share_of(_successes(judged), len(judged), "problem", "succeeds", "succeed")
    return f"{count(len(facts), 'problem')} finished"


HEADLINES: dict[str, Headline] = {
    "uvce": Headline(("success", "target", "confidence_after"), counterfactuals),
    "disagreement": Headline(("success", "gap_after"), disagreements),
    "neuron_vis": Headline(("success", "activation_after", "training_max"), visualizations),
    "neuron_cf": Headline(
        ("success", "direction", "activation_before", "activation_after", "training_std"),
        _steered("activation", "unit's activation"),
    ),
    "npca_cf": Headline(
        ("success", "direction", "contribution_before", "contribution_after", "training_std"),
        _steered("contribution", "component's contribution"),
    ),
    "diffexplainer_class": Headline(("success", "target", "activation_score", "baseline_prompts"), class_explanations),
    "spurious_audit": Headline(("verdict", "r", "agrees_with_annotation"), audits),
    "attention_maps": Headline(("share_on_object_class", "object_area"), attention_shares),
    "concept_effect": Headline(
        ("kind", "found", "target", "overlay", "is_control", "is_damage", "effects"), concept_effects
    ),
    "input_gradients": Headline(("share_on_object", "object_area"), gradient_shares),
}


def headline_of(task: str) -> Headline:
    """The headline of a task; of an unknown one the number of successes."""
    return HEADLINES.get(task, Headline(("success",), plain))


def first_sentence(task: str, facts: Sequence[Facts], names: Names) -> str:
    """The first sentence about the results, empty without any."""
    if not facts:
        return ""
    try:
        return headline_of(task).sentence(facts, names)
    except (KeyError, TypeError):  # results of an older version, without some of these values
        return plain([{"success": fact.get("success")} for fact in facts], names)
