"""Rows of the planted world that check units and components against what they truly hang on, found by rendering."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import fmean, median

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Metric, Result, Setting, compute_results, configure_run
from classifier_lens.scripts.evaluate.oracles import (
    ORACLES,
    SHORTCUT_CLASSES,
    oracles_confirm,
    predict_factor,
    result_images,
    shipped_classifier,
)
from classifier_lens.scripts.evaluate.unit_preference import FACTORS, unit_preference, unit_roles
from classifier_lens.tasks.analysis.cam_share import share_inside
from classifier_lens.tasks.npca_cf import NpcaCf
from classifier_lens.tasks.units.addressing import FEATURES, Unit
from classifier_lens.tasks.units.hirescam import hirescam
from classifier_lens.tasks.units.npca import class_components

NEURON_CLASSIFIER = "planted_seresnet"
NUM_UNITS = 24  # that are visualised
UNITS_PER_CLASS = 4  # units of a class whose maps are read
MIN_LOGIT_DROP = 0.1  # logits that a unit has to cost its class to be one of its features


def neuron_vis_results(setting: Setting, n: int) -> tuple[Result, ...]:
    """One picture each of the first `n` units, those that move a logit most."""
    overrides = ("experiment=planted/neuron_vis", f"task.units=top:{max(n, NUM_UNITS)}", f"seed={setting.seed}")
    return compute_results(setting, NEURON_CLASSIFIER, overrides, n)


def vis_above_training(setting: Setting, n: int) -> Estimate:
    """How often a picture excites its unit more than the best of 20,000 training renders."""
    given = neuron_vis_results(setting, n)
    ratios = [a.record["activation_after"] / a.record["training_max"] for a in given if a.record is not None]
    return estimates.proportion([a.success for a in given], f"median {median(ratios):.2f} times the best render's")


def vis_above_words(setting: Setting, n: int) -> Estimate:
    """How often a picture excites its unit more than every picture of a word alone."""
    records = [a.record for a in neuron_vis_results(setting, n)]
    return estimates.proportion([r is not None and r["activation_after"] > r["word_max"] for r in records])


def vis_preferred_factor(setting: Setting, n: int) -> Estimate:
    """How often both oracles see what the unit truly prefers, found by rendering."""
    given = neuron_vis_results(setting, n)
    rows, images = result_images(given)
    wanted = [unit_preference(shipped_classifier(setting, NEURON_CLASSIFIER), given[i].problem.unit) for i in rows]
    hits = [
        oracles_confirm(setting, want.factor, image[None], [want.value])[0]
        for image, want in zip(images, wanted, strict=True)
    ]
    kinds = ", ".join(f"{count} by {factor}" for factor, count in Counter(w.factor for w in wanted).items())
    return estimates.proportion(hits + [False] * (n - len(rows)), kinds)


def rank_units_by_logit_drop(setting: Setting, label: str, spurious: bool) -> dict[int, float]:
    """All features that speak for a class, and how many logits they cost it, the dearest first: the truly spurious ones
    that hang on its cue by their drop without it; or the truly core ones by their drop without the object."""
    classifier = shipped_classifier(setting, NEURON_CLASSIFIER)
    assert classifier.head is not None
    weight, own = classifier.head.weight[planted.CLASSES.index(label)].cpu(), unit_roles(classifier, label)
    costs = {}
    for i, role in enumerate(own):
        if spurious and role.is_spurious and role.value == planted.SHORTCUTS[label][1]:
            costs[i] = float(weight[i]) * role.context_drop
        elif not spurious and role.is_core:
            costs[i] = float(weight[i]) * role.object_drop
    return {i: costs[i] for i in sorted(costs, key=lambda i: -costs[i]) if costs[i] > 0}


@dataclass(frozen=True)
class CueChange:
    """An answer about a tied class's cue: class_name: the class; increase: whether the cue was to appear or to
    vanish."""

    result: Result
    class_name: str
    increase: bool


def cue_change_results(
    setting: Setting, n: int, classifier: str, overrides: Callable[[str], Sequence[str]]
) -> list[CueChange]:
    """Per tied class a quarter of the answers: half of them upwards from pictures without its cue, half downwards from
    pictures with it."""
    found = []
    for label in SHORTCUT_CLASSES:
        for direction, cues in (("max", "hidden"), ("min", "shown")):
            more = (f"task.directions=[{direction}]", f"data.cues={cues}", f"seed={setting.seed}", *overrides(label))
            given = compute_results(setting, classifier, more, max(n // (2 * len(SHORTCUT_CLASSES)), 1))
            found += [CueChange(a, label, direction == "max") for a in given]
    return found


def unit_cue_changes(setting: Setting, n: int) -> list[CueChange]:
    """Answers about units that hang on a tied class's cue."""
    return cue_change_results(
        setting,
        n,
        NEURON_CLASSIFIER,
        lambda label: (
            "experiment=planted/neuron_cf",
            f"task.units={list(rank_units_by_logit_drop(setting, label, True))[:2]}",
            f"task.label={label}",
        ),
    )


def component_cue_changes(setting: Setting, n: int) -> list[CueChange]:
    """Answers about the component of a tied class that its cue moves most."""
    return cue_change_results(setting, n, "planted_shortcut", lambda label: (
        # A mapping would be merged into the experiment's own.
        "experiment=planted/npca_cf", f"task.images_per_component={n}",
        "~task.components", f"+task.components={{{label}: [{cue_component(setting, label)}]}}",
    ))  # fmt: skip


@cache
def cue_component(setting: Setting, label: str) -> int:
    """Of a class's first components the one that its cue moves most, in standard deviations, by rendering."""
    parts = configure_run(setting, "planted_shortcut", ("experiment=planted/npca_cf",), 1)[0]
    task, classifier = parts.task, shipped_classifier(setting, "planted_shortcut")
    assert isinstance(task, NpcaCf)
    own = class_components(classifier, label, task.training, parts.generator.resolution, task.cache)
    factor, cue = planted.SHORTCUTS[label]
    field, values = FACTORS[factor]
    scenes = planted.sample_scenes(64, planted.SPLIT_SEEDS["validation"]).with_factors(
        label=planted.CLASSES.index(label)
    )
    there = own.contributions(compute_features(classifier, scenes.with_factors(**{field: values.index(cue)})))
    usual = own.contributions(compute_features(classifier, scenes))
    std = own.vectors.sum(dim=1).abs() * own.variance.sqrt()
    effect = (there.mean(dim=0) - usual.mean(dim=0)) / std.clamp(min=1e-6)
    return int(effect[:5].argmax())


@torch.no_grad()
def compute_features(classifier: ImageClassifier, scenes: planted.SceneFactors) -> Float[Tensor, "n f"]:
    """A classifier's features of renders."""
    found = classifier(planted.render(scenes).image).features
    assert found is not None
    return found.cpu()


CueChangeSource = Callable[[Setting, int], list[CueChange]]


def cue_change_success(setting: Setting, n: int, cue_changes: CueChangeSource) -> Estimate:
    """How often the cue is there to both oracles after it was asked for, and to neither after it was not."""
    hits = []
    for m in (found := cue_changes(setting, n)):
        factor, cue = planted.SHORTCUTS[m.class_name]
        seen = (
            []
            if m.result.best is None
            else [predict_factor(setting, o, factor, m.result.best[None])[0] == cue for o in ORACLES]
        )
        hits.append(bool(seen) and (all(seen) if m.increase else not any(seen)))
    shares = {
        way: [hit for hit, m in zip(hits, found, strict=True) if m.increase == up] for way, up in DIRECTIONS.items()
    }
    return estimates.proportion(hits, ", ".join(f"{way} {sum(own)} of {len(own)}" for way, own in shares.items()))


DIRECTIONS = {"appears": True, "vanishes": False}


def class_preserved(setting: Setting, n: int, cue_changes: CueChangeSource) -> Estimate:
    """How often both oracles still see the picture's class."""
    found = cue_changes(setting, n)
    hits = [
        m.result.best is not None and oracles_confirm(setting, "class", m.result.best[None], [m.class_name])[0]
        for m in found
    ]
    return estimates.proportion(hits)


def confidence_follows_cue(setting: Setting, n: int, cue_changes: CueChangeSource) -> Estimate:
    """How often the class's confidence rises where the cue was to appear, and falls where it was to vanish."""
    hits, changes = [], {True: [0.0], False: [0.0]}
    for m in cue_changes(setting, n):
        record = m.result.record
        change = (
            0.0
            if record is None
            else record["confidence_after"][m.class_name] - record["confidence_before"][m.class_name]
        )
        hits.append(change > 0 if m.increase else change < 0)
        changes[m.increase].append(change)
    means = ", ".join(f"{way} {sum(changes[up]) / max(len(changes[up]) - 1, 1):+.2f}" for way, up in DIRECTIONS.items())
    return estimates.proportion(hits, f"mean change where the cue {means}")


def spurious_and_core_units(setting: Setting) -> list[tuple[str, bool, list[int]]]:
    """Classes, whether they are tied, and units of theirs by rendering: clearly spurious ones of the tied classes,
    clearly core ones of the others. A unit that object and context lower about as much is neither in truth, and one
    that costs the class next to nothing is none of its features."""
    found = []
    for label in planted.CLASSES:
        own, costs = (
            unit_roles(shipped_classifier(setting, NEURON_CLASSIFIER), label),
            rank_units_by_logit_drop(setting, label, label in SHORTCUT_CLASSES),
        )
        if clear := [unit for unit, cost in costs.items() if own[unit].is_clear and cost >= MIN_LOGIT_DROP][
            :UNITS_PER_CLASS
        ]:
            found.append((label, label in SHORTCUT_CLASSES, clear))
    return found


def cam_auc(setting: Setting, n: int) -> Estimate:
    """The area under the ROC curve with which HiResCAM's share outside the object tells spurious from core units. Each
    unit's mean over its counterfactuals, those apart whose object covers less than 2 % or more than 60 % of the
    picture."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    groups = spurious_and_core_units(setting)
    pictures = max(n // sum(len(units) for _, _, units in groups), 1)
    for label, tied, units in groups:
        overrides = (
            "experiment=planted/neuron_cf", f"task.units={units}", f"task.label={label}", "task.directions=[max]",
            f"seed={setting.seed}",
        )  # fmt: skip
        given = compute_results(setting, NEURON_CLASSIFIER, overrides, pictures * len(units))
        for unit in units:
            own = [
                a.record["cam_outside_after"] for a in given
                if a.record is not None and a.problem.unit.index == unit and 0.02 < object_area(a) < 0.6
            ]  # fmt: skip
            if own:
                shares[tied].append(fmean(own))
    return estimates.roc_auc(shares[True], shares[False])


def render_cam_auc(setting: Setting, n: int, layer: str) -> Estimate:
    """The same of a layer's map in `n` renders per class, a tied one with its cue, and with their true objects."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    classifier = shipped_classifier(setting, NEURON_CLASSIFIER)
    for label, tied, units in spurious_and_core_units(setting):
        scenes = planted.sample_scenes(n, planted.SPLIT_SEEDS["validation"]).with_factors(
            label=planted.CLASSES.index(label)
        )
        if tied:
            field, values = FACTORS[planted.SHORTCUTS[label][0]]
            scenes = scenes.with_factors(**{field: values.index(planted.SHORTCUTS[label][1])})
        drawn = planted.render(scenes)
        for unit in units:
            cams = [hirescam(classifier, image, Unit(FEATURES, unit), layer) for image in drawn.image]
            outside = [
                share_inside(cam, 1 - mask[None])
                for cam, mask in zip(cams, drawn.object_mask, strict=True) if cam is not None
            ]  # fmt: skip
            shares[tied].append(fmean(outside))
    return estimates.roc_auc(shares[True], shares[False])


def object_area(answer: Result) -> float:
    """Share of the picture that the object's mask covers."""
    return 1.0 if answer.mask is None else float(1 - answer.mask.mean())


ROWS = (
    Metric("planted.neuron_vis_training", vis_above_training, NUM_UNITS, "%", 0.90),
    Metric("planted.neuron_vis_word", vis_above_words, NUM_UNITS, "%", 1.0),
    Metric("planted.neuron_vis_preference", vis_preferred_factor, NUM_UNITS, "%", 0.80),
    *(
        Metric(f"planted.{task}_{what}", partial(measure, cue_changes=cue_changes), 32, "%", bar)
        for task, cue_changes in (("neuron_cf", unit_cue_changes), ("npca_cf", component_cue_changes))
        for what, measure, bar in (("cue", cue_change_success, 0.80), ("class", class_preserved, 0.85),
                                   ("confidence", confidence_follows_cue, None))
    ),
    Metric("planted.neuron_cf_cam", cam_auc, 72, "", 0.9),
    Metric("planted.cam_renders.layer3", partial(render_cam_auc, layer="layer3"), 16, ""),
    Metric("planted.cam_renders.layer4", partial(render_cam_auc, layer="layer4"), 16, ""),
)  # fmt: skip
