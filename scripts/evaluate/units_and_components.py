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
from classifier_lens.scripts.evaluate.metric import Answer, Row, Setting, answers, parts_for
from classifier_lens.scripts.evaluate.oracles import ORACLES, TIED, answered, both, network, read
from classifier_lens.scripts.evaluate.unit_preference import FACTORS, preference, roles
from classifier_lens.tasks.analysis.cam_share import share_within
from classifier_lens.tasks.npca_cf import NpcaCf
from classifier_lens.tasks.units.addressing import FEATURES, Unit
from classifier_lens.tasks.units.hirescam import hirescam
from classifier_lens.tasks.units.npca import components

NEURONS = "planted_seresnet"
UNITS = 24  # that are visualised
PER_CLASS = 4  # units of a class whose maps are read
COUNTS = 0.1  # logits that a unit has to cost its class to be one of its features


def visualised(setting: Setting, n: int) -> tuple[Answer, ...]:
    """One picture each of the first `n` units, those that move a logit most."""
    overrides = ("experiment=planted/neuron_vis", f"task.units=top:{max(n, UNITS)}", f"seed={setting.seed}")
    return answers(setting, NEURONS, overrides, n)


def vis_training(setting: Setting, n: int) -> Estimate:
    """How often a picture excites its unit more than the best of 20,000 training renders."""
    given = visualised(setting, n)
    ratios = [a.record["activation_after"] / a.record["training_max"] for a in given if a.record is not None]
    return estimates.share([a.success for a in given], f"median {median(ratios):.2f} times the best render's")


def vis_word(setting: Setting, n: int) -> Estimate:
    """How often a picture excites its unit more than every picture of a word alone."""
    records = [a.record for a in visualised(setting, n)]
    return estimates.share([r is not None and r["activation_after"] > r["word_max"] for r in records])


def vis_preference(setting: Setting, n: int) -> Estimate:
    """How often both oracles see what the unit truly prefers, found by rendering."""
    given = visualised(setting, n)
    rows, images = answered(given)
    wanted = [preference(network(setting, NEURONS), given[i].problem.unit) for i in rows]
    hits = [
        both(setting, want.factor, image[None], [want.value])[0] for image, want in zip(images, wanted, strict=True)
    ]
    kinds = ", ".join(f"{count} by {factor}" for factor, count in Counter(w.factor for w in wanted).items())
    return estimates.share(hits + [False] * (n - len(rows)), kinds)


def units_of(setting: Setting, label: str, spurious: bool) -> dict[int, float]:
    """All features that speak for a class, and how many logits they cost it, the dearest first: the truly spurious ones
    that hang on its cue by their drop without it; or the truly core ones by their drop without the object."""
    classifier = network(setting, NEURONS)
    assert classifier.head is not None
    weight, own = classifier.head.weight[planted.CLASSES.index(label)].cpu(), roles(classifier, label)
    costs = {}
    for i, role in enumerate(own):
        if spurious and role.spurious and role.value == planted.SHORTCUTS[label][1]:
            costs[i] = float(weight[i]) * role.context
        elif not spurious and role.core:
            costs[i] = float(weight[i]) * role.object
    return {i: costs[i] for i in sorted(costs, key=lambda i: -costs[i]) if costs[i] > 0}


@dataclass(frozen=True)
class Moved:
    """An answer about a tied class's cue: label: the class; up: whether the cue was to appear or to vanish."""

    answer: Answer
    label: str
    up: bool


def moved(setting: Setting, n: int, classifier: str, overrides: Callable[[str], Sequence[str]]) -> list[Moved]:
    """Per tied class a quarter of the answers: half of them upwards from pictures without its cue, half downwards from
    pictures with it."""
    found = []
    for label in TIED:
        for direction, cues in (("max", "hidden"), ("min", "shown")):
            more = (f"task.directions=[{direction}]", f"data.cues={cues}", f"seed={setting.seed}", *overrides(label))
            given = answers(setting, classifier, more, max(n // (2 * len(TIED)), 1))
            found += [Moved(a, label, direction == "max") for a in given]
    return found


def by_units(setting: Setting, n: int) -> list[Moved]:
    """Answers about units that hang on a tied class's cue."""
    return moved(setting, n, NEURONS, lambda label: (
        "experiment=planted/neuron_cf", f"task.units={list(units_of(setting, label, True))[:2]}", f"task.label={label}",
    ))  # fmt: skip


def by_components(setting: Setting, n: int) -> list[Moved]:
    """Answers about the component of a tied class that its cue moves most."""
    return moved(setting, n, "planted_shortcut", lambda label: (
        # A mapping would be merged into the experiment's own.
        "experiment=planted/npca_cf", f"task.images={n}",
        "~task.components", f"+task.components={{{label}: [{cue_component(setting, label)}]}}",
    ))  # fmt: skip


@cache
def cue_component(setting: Setting, label: str) -> int:
    """Of a class's first components the one that its cue moves most, in standard deviations, by rendering."""
    parts = parts_for(setting, "planted_shortcut", ("experiment=planted/npca_cf",), 1)[0]
    task, classifier = parts.task, network(setting, "planted_shortcut")
    assert isinstance(task, NpcaCf)
    own = components(classifier, label, task.training, parts.generator.resolution, task.cache)
    factor, cue = planted.SHORTCUTS[label]
    field, values = FACTORS[factor]
    scenes = planted.draw(64, planted.SPLIT_SEEDS["validation"]).vary(label=planted.CLASSES.index(label))
    there = own.contributions(features_of(classifier, scenes.vary(**{field: values.index(cue)})))
    usual = own.contributions(features_of(classifier, scenes))
    std = own.vectors.sum(dim=1).abs() * own.variance.sqrt()
    effect = (there.mean(dim=0) - usual.mean(dim=0)) / std.clamp(min=1e-6)
    return int(effect[:5].argmax())


@torch.no_grad()
def features_of(classifier: ImageClassifier, scenes: planted.Scenes) -> Float[Tensor, "n f"]:
    """A classifier's features of renders."""
    found = classifier(planted.render(scenes).image).features
    assert found is not None
    return found.cpu()


Answers = Callable[[Setting, int], list[Moved]]


def cue_moves(setting: Setting, n: int, given: Answers) -> Estimate:
    """How often the cue is there to both oracles after it was asked for, and to neither after it was not."""
    hits = []
    for m in (found := given(setting, n)):
        factor, cue = planted.SHORTCUTS[m.label]
        seen = (
            [] if m.answer.best is None else [read(setting, o, factor, m.answer.best[None])[0] == cue for o in ORACLES]
        )
        hits.append(bool(seen) and (all(seen) if m.up else not any(seen)))
    shares = {way: [hit for hit, m in zip(hits, found, strict=True) if m.up == up] for way, up in WAYS.items()}
    return estimates.share(hits, ", ".join(f"{way} {sum(own)} of {len(own)}" for way, own in shares.items()))


WAYS = {"appears": True, "vanishes": False}


def class_stays(setting: Setting, n: int, given: Answers) -> Estimate:
    """How often both oracles still see the picture's class."""
    found = given(setting, n)
    hits = [m.answer.best is not None and both(setting, "class", m.answer.best[None], [m.label])[0] for m in found]
    return estimates.share(hits)


def confidence_follows(setting: Setting, n: int, given: Answers) -> Estimate:
    """How often the class's confidence rises where the cue was to appear, and falls where it was to vanish."""
    hits, changes = [], {True: [0.0], False: [0.0]}
    for m in given(setting, n):
        record = m.answer.record
        change = 0.0 if record is None else record["confidence_after"][m.label] - record["confidence_before"][m.label]
        hits.append(change > 0 if m.up else change < 0)
        changes[m.up].append(change)
    means = ", ".join(f"{way} {sum(changes[up]) / max(len(changes[up]) - 1, 1):+.2f}" for way, up in WAYS.items())
    return estimates.share(hits, f"mean change where the cue {means}")


def spurious_and_core(setting: Setting) -> list[tuple[str, bool, list[int]]]:
    """Classes, whether they are tied, and units of theirs by rendering: clearly spurious ones of the tied classes,
    clearly core ones of the others. A unit that object and context lower about as much is neither in truth, and one
    that costs the class next to nothing is none of its features."""
    found = []
    for label in planted.CLASSES:
        own, costs = roles(network(setting, NEURONS), label), units_of(setting, label, label in TIED)
        if clear := [unit for unit, cost in costs.items() if own[unit].clear and cost >= COUNTS][:PER_CLASS]:
            found.append((label, label in TIED, clear))
    return found


def cam_separates(setting: Setting, n: int) -> Estimate:
    """The area under the ROC curve with which HiResCAM's share outside the object tells spurious from core units. Each
    unit's mean over its counterfactuals, those apart whose object covers less than 2 % or more than 60 % of the
    picture."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    groups = spurious_and_core(setting)
    pictures = max(n // sum(len(units) for _, _, units in groups), 1)
    for label, tied, units in groups:
        overrides = (
            "experiment=planted/neuron_cf", f"task.units={units}", f"task.label={label}", "task.directions=[max]",
            f"seed={setting.seed}",
        )  # fmt: skip
        given = answers(setting, NEURONS, overrides, pictures * len(units))
        for unit in units:
            own = [
                a.record["cam_outside_after"] for a in given
                if a.record is not None and a.problem.unit.index == unit and 0.02 < object_share(a) < 0.6
            ]  # fmt: skip
            if own:
                shares[tied].append(fmean(own))
    return estimates.auc(shares[True], shares[False])


def cam_in_renders(setting: Setting, n: int, layer: str) -> Estimate:
    """The same of a layer's map in `n` renders per class, a tied one with its cue, and with their true objects."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    classifier = network(setting, NEURONS)
    for label, tied, units in spurious_and_core(setting):
        scenes = planted.draw(n, planted.SPLIT_SEEDS["validation"]).vary(label=planted.CLASSES.index(label))
        if tied:
            field, values = FACTORS[planted.SHORTCUTS[label][0]]
            scenes = scenes.vary(**{field: values.index(planted.SHORTCUTS[label][1])})
        drawn = planted.render(scenes)
        for unit in units:
            cams = [hirescam(classifier, image, Unit(FEATURES, unit), layer) for image in drawn.image]
            outside = [
                share_within(cam, 1 - mask[None])
                for cam, mask in zip(cams, drawn.object_mask, strict=True) if cam is not None
            ]  # fmt: skip
            shares[tied].append(fmean(outside))
    return estimates.auc(shares[True], shares[False])


def object_share(answer: Answer) -> float:
    """Share of the picture that the object's mask covers."""
    return 1.0 if answer.mask is None else float(1 - answer.mask.mean())


ROWS = (
    Row("planted.neuron_vis_training", vis_training, UNITS, "%", 0.90),
    Row("planted.neuron_vis_word", vis_word, UNITS, "%", 1.0),
    Row("planted.neuron_vis_preference", vis_preference, UNITS, "%", 0.80),
    *(
        Row(f"planted.{task}_{what}", partial(measure, given=given), 32, "%", bar)
        for task, given in (("neuron_cf", by_units), ("npca_cf", by_components))
        for what, measure, bar in (("cue", cue_moves, 0.80), ("class", class_stays, 0.85),
                                   ("confidence", confidence_follows, None))
    ),
    Row("planted.neuron_cf_cam", cam_separates, 72, "", 0.9),
    Row("planted.cam_renders.layer3", partial(cam_in_renders, layer="layer3"), 16, ""),
    Row("planted.cam_renders.layer4", partial(cam_in_renders, layer="layer4"), 16, ""),
)  # fmt: skip
