"""Metrics that check explanations of units and components against ground truth from rendering."""

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
NUM_UNITS = 24  # units that are visualized
UNITS_PER_CLASS = 4  # units per class whose maps are measured
MIN_LOGIT_DROP = 0.1  # drop of the class logit from which on a unit counts as a feature of the class


def neuron_vis_results(setting: Setting, n: int) -> tuple[Result, ...]:
    """Visualizations of `n` units, those that change a logit most."""
    overrides = ("experiment=planted/neuron_vis", f"task.units=top:{max(n, NUM_UNITS)}", f"seed={setting.seed}")
    return compute_results(setting, NEURON_CLASSIFIER, overrides, n)


def vis_above_training(setting: Setting, n: int) -> Estimate:
    """How often a visualization activates its unit more than the best of 20,000 training renders."""
    results = neuron_vis_results(setting, n)
    ratios = [
        result.record["activation_after"] / result.record["training_max"]
        for result in results
        if result.record is not None
    ]
    return estimates.proportion(
        [result.success for result in results], f"median {median(ratios):.2f} times the best render's"
    )


def vis_above_words(setting: Setting, n: int) -> Estimate:
    """How often a visualization activates its unit more than every image of a single word."""
    records = [result.record for result in neuron_vis_results(setting, n)]
    return estimates.proportion(
        [record is not None and record["activation_after"] > record["word_max"] for record in records]
    )


def vis_preferred_factor(setting: Setting, n: int) -> Estimate:
    """How often both oracles see the value that the unit prefers by rendering."""
    results = neuron_vis_results(setting, n)
    indices, images = result_images(results)
    preferences = [
        unit_preference(shipped_classifier(setting, NEURON_CLASSIFIER), results[i].problem.unit) for i in indices
    ]
    hits = [
        oracles_confirm(setting, preference.factor, image[None], [preference.value])[0]
        for image, preference in zip(images, preferences, strict=True)
    ]
    kinds = ", ".join(
        f"{count} by {factor}" for factor, count in Counter(preference.factor for preference in preferences).items()
    )
    return estimates.proportion(hits + [False] * (n - len(indices)), kinds)


def rank_units_by_logit_drop(setting: Setting, label: str, spurious: bool) -> dict[int, float]:
    """Features with a positive weight for a class and the drop of its logit, largest first: for spurious features that
    depend on its cue the drop without the cue, for core features the drop without the object."""
    classifier = shipped_classifier(setting, NEURON_CLASSIFIER)
    assert classifier.head is not None
    weight, roles = classifier.head.weight[planted.CLASSES.index(label)].cpu(), unit_roles(classifier, label)
    costs = {}
    for i, role in enumerate(roles):
        if spurious and role.is_spurious and role.value == planted.SHORTCUTS[label][1]:
            costs[i] = float(weight[i]) * role.context_drop
        elif not spurious and role.is_core:
            costs[i] = float(weight[i]) * role.object_drop
    return {i: costs[i] for i in sorted(costs, key=lambda i: -costs[i]) if costs[i] > 0}


@dataclass(frozen=True)
class CueChange:
    """A result about the cue of a class. class_name: the class; increase: whether the cue should appear (true) or
    disappear."""

    result: Result
    class_name: str
    increase: bool


def cue_change_results(
    setting: Setting, n: int, classifier: str, overrides: Callable[[str], Sequence[str]]
) -> list[CueChange]:
    """For each class with a shortcut a quarter of the results: half of them maximize from images without the cue, half
    minimize from images with it."""
    changes = []
    for label in SHORTCUT_CLASSES:
        for direction, cues in (("max", "absent"), ("min", "present")):
            more = (f"task.directions=[{direction}]", f"data.cues={cues}", f"seed={setting.seed}", *overrides(label))
            results = compute_results(setting, classifier, more, max(n // (2 * len(SHORTCUT_CLASSES)), 1))
            changes += [CueChange(result, label, direction == "max") for result in results]
    return changes


def unit_cue_changes(setting: Setting, n: int) -> list[CueChange]:
    """Results about units that depend on the cue of a class."""
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
    """Results about the component of a class that its cue changes most."""
    return cue_change_results(setting, n, "planted_shortcut", lambda label: (
        # A mapping would be merged with that of the experiment.
        "experiment=planted/npca_cf", f"task.images_per_component={n}",
        "~task.components", f"+task.components={{{label}: [{cue_component(setting, label)}]}}",
    ))  # fmt: skip


@cache
def cue_component(setting: Setting, label: str) -> int:
    """The index of the component, of the first five, that the cue changes most, in standard deviations, by
    rendering."""
    parts = configure_run(setting, "planted_shortcut", ("experiment=planted/npca_cf",), 1)[0]
    task, classifier = parts.task, shipped_classifier(setting, "planted_shortcut")
    assert isinstance(task, NpcaCf)
    components = class_components(classifier, label, task.training, parts.generator.resolution, task.cache)
    factor, cue = planted.SHORTCUTS[label]
    field, values = FACTORS[factor]
    scenes = planted.sample_scenes(64, planted.SPLIT_SEEDS["validation"]).with_factors(
        label=planted.CLASSES.index(label)
    )
    with_cue = components.contributions(compute_features(classifier, scenes.with_factors(**{field: values.index(cue)})))
    baseline = components.contributions(compute_features(classifier, scenes))
    std = components.vectors.sum(dim=1).abs() * components.variance.sqrt()
    effect = (with_cue.mean(dim=0) - baseline.mean(dim=0)) / std.clamp(min=1e-6)
    return int(effect[:5].argmax())


@torch.no_grad()
def compute_features(classifier: ImageClassifier, scenes: planted.SceneFactors) -> Float[Tensor, "n f"]:
    """The features of renders."""
    features = classifier(planted.render(scenes).image).features
    assert features is not None
    return features.cpu()


CueChangeSource = Callable[[Setting, int], list[CueChange]]


def cue_change_success(setting: Setting, n: int, cue_changes: CueChangeSource) -> Estimate:
    """How often both oracles see the cue where it should appear, and neither does where it should disappear."""
    hits = []
    for change in (changes := cue_changes(setting, n)):
        factor, cue = planted.SHORTCUTS[change.class_name]
        sees_cue = (
            []
            if change.result.best is None
            else [predict_factor(setting, o, factor, change.result.best[None])[0] == cue for o in ORACLES]
        )
        hits.append(bool(sees_cue) and (all(sees_cue) if change.increase else not any(sees_cue)))
    shares = {
        way: [hit for hit, change in zip(hits, changes, strict=True) if change.increase == up]
        for way, up in DIRECTIONS.items()
    }
    return estimates.proportion(
        hits,
        ", ".join(f"{way} {sum(direction_hits)} of {len(direction_hits)}" for way, direction_hits in shares.items()),
    )


DIRECTIONS = {"appears": True, "disappears": False}


def class_preserved(setting: Setting, n: int, cue_changes: CueChangeSource) -> Estimate:
    """How often both oracles still predict the class of the image."""
    changes = cue_changes(setting, n)
    hits = [
        change.result.best is not None
        and oracles_confirm(setting, "class", change.result.best[None], [change.class_name])[0]
        for change in changes
    ]
    return estimates.proportion(hits)


def confidence_follows_cue(setting: Setting, n: int, cue_changes: CueChangeSource) -> Estimate:
    """How often the confidence in the class rises where the cue should appear, and falls where it should disappear."""
    hits, changes = [], {True: [0.0], False: [0.0]}
    for cue_change in cue_changes(setting, n):
        record = cue_change.result.record
        change = (
            0.0
            if record is None
            else record["confidence_after"][cue_change.class_name] - record["confidence_before"][cue_change.class_name]
        )
        hits.append(change > 0 if cue_change.increase else change < 0)
        changes[cue_change.increase].append(change)
    means = ", ".join(f"{way} {sum(changes[up]) / max(len(changes[up]) - 1, 1):+.2f}" for way, up in DIRECTIONS.items())
    return estimates.proportion(hits, f"mean change where the cue {means}")


def spurious_and_core_units(setting: Setting) -> list[tuple[str, bool, list[int]]]:
    """Classes, whether they have a shortcut, and units of them by rendering: clearly spurious ones for classes with a
    shortcut, clearly core ones for the others. A unit that depends on object and context about equally is neither, and
    one with a small logit drop is no feature of the class."""
    groups = []
    for label in planted.CLASSES:
        roles, costs = (
            unit_roles(shipped_classifier(setting, NEURON_CLASSIFIER), label),
            rank_units_by_logit_drop(setting, label, label in SHORTCUT_CLASSES),
        )
        if clear := [unit for unit, cost in costs.items() if roles[unit].is_clear and cost >= MIN_LOGIT_DROP][
            :UNITS_PER_CLASS
        ]:
            groups.append((label, label in SHORTCUT_CLASSES, clear))
    return groups


def cam_auc(setting: Setting, n: int) -> Estimate:
    """The area under the ROC curve with which HiResCAM's share outside the object separates spurious from core units,
    as the mean over a unit's counterfactuals whose object covers between 2 % and 60 % of the image."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    groups = spurious_and_core_units(setting)
    images_per_unit = max(n // sum(len(units) for _, _, units in groups), 1)
    for label, has_shortcut, units in groups:
        overrides = (
            "experiment=planted/neuron_cf", f"task.units={units}", f"task.label={label}", "task.directions=[max]",
            f"seed={setting.seed}",
        )  # fmt: skip
        results = compute_results(setting, NEURON_CLASSIFIER, overrides, images_per_unit * len(units))
        for unit in units:
            unit_shares = [
                result.record["cam_share_outside_after"] for result in results
                if result.record is not None and result.problem.unit.index == unit and 0.02 < object_area(result) < 0.6
            ]  # fmt: skip
            if unit_shares:
                shares[has_shortcut].append(fmean(unit_shares))
    return separation(shares[True], shares[False])


def render_cam_auc(setting: Setting, n: int, layer: str) -> Estimate:
    """The same for the map of a layer in `n` renders per class with their true objects; classes with a shortcut are
    shown with their cue."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    classifier = shipped_classifier(setting, NEURON_CLASSIFIER)
    for label, has_shortcut, units in spurious_and_core_units(setting):
        scenes = planted.sample_scenes(n, planted.SPLIT_SEEDS["validation"]).with_factors(
            label=planted.CLASSES.index(label)
        )
        if has_shortcut:
            field, values = FACTORS[planted.SHORTCUTS[label][0]]
            scenes = scenes.with_factors(**{field: values.index(planted.SHORTCUTS[label][1])})
        rendered = planted.render(scenes)
        for unit in units:
            cams = [hirescam(classifier, image, Unit(FEATURES, unit), layer) for image in rendered.image]
            outside = [
                share_inside(cam, 1 - mask[None])
                for cam, mask in zip(cams, rendered.object_mask, strict=True) if cam is not None
            ]  # fmt: skip
            shares[has_shortcut].append(fmean(outside))
    return separation(shares[True], shares[False])


def separation(spurious: Sequence[float], core: Sequence[float]) -> Estimate:
    """The area under the ROC curve with which shares outside the object separate spurious from core units."""
    note = f"{len(spurious)} against {len(core)}"
    if spurious and core:
        note += f"; medians {median(spurious):.2f}, {median(core):.2f}"
    return estimates.roc_auc(spurious, core, note)


def object_area(result: Result) -> float:
    """Share of the image that the object's mask covers."""
    return 1.0 if result.mask is None else float(1 - result.mask.mean())


METRICS = (
    Metric("planted.neuron_vis_above_training", vis_above_training, NUM_UNITS, "%", 0.90),
    Metric("planted.neuron_vis_above_words", vis_above_words, NUM_UNITS, "%", 1.0),
    Metric("planted.neuron_vis_preference", vis_preferred_factor, NUM_UNITS, "%", 0.80),
    *(
        Metric(f"planted.{task}_{what}", partial(measure, cue_changes=cue_changes), 32, "%", threshold)
        for task, cue_changes in (("neuron_cf", unit_cue_changes), ("npca_cf", component_cue_changes))
        for what, measure, threshold in (("cue", cue_change_success, 0.80), ("class", class_preserved, 0.85),
                                   ("confidence", confidence_follows_cue, None))
    ),
    Metric("planted.neuron_cf_cam_auc", cam_auc, 72, "", 0.9),
    Metric("planted.cam_renders.layer3", partial(render_cam_auc, layer="layer3"), 16, ""),
    Metric("planted.cam_renders.layer4", partial(render_cam_auc, layer="layer4"), 16, ""),
)  # fmt: skip
