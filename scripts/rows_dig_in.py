"""Rows of the planted world that check every other task of DiG-IN against what was planted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import fmean, median

import torch
from jaxtyping import Float
from torch import Tensor

from data import planted
from models.classifier import ImageClassifier
from models.zoo import load_shipped
from scripts import metrics
from scripts.metrics import Estimate
from scripts.preference import FACTORS, preference, roles
from scripts.rows import BATCH, Answer, Row, Setting, answers, asked, world
from scripts.rows_planted import CLASSIFIER, ORACLES, answered, read
from tasks.components import components
from tasks.npca_cf import NpcaCf

TIED = tuple(planted.SHORTCUTS)
# The zero-shot classifier's confused names: class -> what its pictures show instead (class, background).
CONFUSED = {"rock crab": ("fiddler crab", "sand"), "partridge": ("prairie chicken", "snow")}


# --- judges --------------------------------------------------------------------------------------------------


@cache
def network(setting: Setting, name: str) -> ImageClassifier:
    """A shipped classifier, on the generator's device."""
    classifier: ImageClassifier = load_shipped(name).to(world(setting, CLASSIFIER).generator.device)
    return classifier


@torch.no_grad()
def called(setting: Setting, name: str, images: Float[Tensor, "b 3 h w"]) -> list[str]:
    """What a shipped classifier calls pictures."""
    judge, device = network(setting, name), world(setting, CLASSIFIER).generator.device
    logits = torch.cat([judge(part.to(device)).logits for part in images.split(4 * BATCH)])
    return [judge.labels[i] for i in logits.argmax(dim=1).tolist()]


def both(
    setting: Setting, factor: str, images: Float[Tensor, "b 3 h w"], wanted: Sequence[str]
) -> list[bool]:  # fmt: skip
    """Per picture whether both oracles read the wanted value of a factor."""
    if not len(images):
        return []
    readings = [read(setting, name, factor, images) for name in ORACLES]
    return [all(value == want for value in values) for *values, want in zip(*readings, wanted, strict=True)]


def all_of(*verdicts: Sequence[bool]) -> list[bool]:
    """Per picture whether every verdict holds."""
    return [all(values) for values in zip(*verdicts, strict=True)]


def share_of(hits: Sequence[bool], note: str) -> Estimate:
    """A share with its interval; undefined where there is nothing to share."""
    if len(hits) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), f"{note}; only {len(hits)} to judge")
    return metrics.share(hits, note)


# --- disagreement --------------------------------------------------------------------------------------------


def disputes(setting: Setting, n: int, classifier: str, classes: Sequence[str]) -> tuple[Answer, ...]:
    """Pictures that the classifier is to call each of the classes while `planted_clean` is not, as many of each."""
    overrides = (
        "experiment=planted/disagreement", f"task.classes=[{','.join(classes)}]", f"task.seeds={-(-n // len(classes))}",
        f"seed={setting.seed}",
    )  # fmt: skip
    return answers(setting, classifier, overrides, n)


def succeeded(given: Sequence[Answer]) -> tuple[list[Answer], Float[Tensor, "b 3 h w"]]:
    """The answers that reached the gap, and their pictures."""
    own = [a for a in given if a.success]
    return own, answered(own)[1]


def disagreement(setting: Setting, n: int, classes: Sequence[str]) -> Estimate:
    """How often p_f − p_g reaches the gap, `planted_shortcut` over `planted_clean`."""
    given = disputes(setting, n, "planted_shortcut", classes)
    hits = [a.success for a in given]
    by_class = ", ".join(
        f"{c} {sum(a.success for a in own)} of {len(own)}"
        for c in classes if (own := [a for a in given if planted.CLASSES[a.problem.target] == c])
    )  # fmt: skip
    return metrics.share(hits, by_class)


def disagreement_cue(setting: Setting, n: int) -> Estimate:
    """In how many of the successes both oracles see the cue of the class."""
    own, images = succeeded(disputes(setting, n, "planted_shortcut", TIED))
    seen = [
        both(setting, factor, images[i : i + 1], [value])[0]
        for i, a in enumerate(own) for factor, value in [planted.SHORTCUTS[planted.CLASSES[a.problem.target]]]
    ]  # fmt: skip
    return share_of(seen, f"{len(own)} of {n} succeeded")


def disagreement_transfer(setting: Setting, n: int) -> Estimate:
    """How many of the successes the second shortcut network calls the class, and the second clean one does not."""
    own, images = succeeded(disputes(setting, n, "planted_shortcut", TIED))
    if not own:
        return share_of([], "none succeeded")
    wanted = [planted.CLASSES[a.problem.target] for a in own]
    fooled = [a == b for a, b in zip(called(setting, "planted_shortcut2", images), wanted, strict=True)]
    spared = [a != b for a, b in zip(called(setting, "planted_clean2", images), wanted, strict=True)]
    note = f"shortcut2 fooled in {sum(fooled)}, clean2 not in {sum(spared)} of {len(own)}"
    return share_of(all_of(fooled, spared), note)


def disagreement_clip(setting: Setting, n: int) -> Estimate:
    """In how many of the zero-shot classifier's successes over `planted_clean` both oracles see the confused thing: a
    crab, or such a bird, of the wrong kind on the ground that its name speaks of."""
    own, images = succeeded(disputes(setting, n, "planted_clip", tuple(CONFUSED)))
    seen = []
    for i, a in enumerate(own):
        kind, ground = CONFUSED[planted.CLASSES[a.problem.target]]
        picture = images[i : i + 1]
        seen.append(both(setting, "class", picture, [kind])[0] and both(setting, "background", picture, [ground])[0])
    return share_of(seen, f"{len(own)} of {n} succeeded")


# --- counterfactuals of errors and attributes ----------------------------------------------------------------


def errors(setting: Setting, n: int, classifier: str, keep: str) -> tuple[Answer, ...]:
    """Misclassified pictures towards their labels."""
    overrides = ("task.mode=error", f"task.keep={keep}", "data.count=2000", f"seed={setting.seed}")
    return answers(setting, classifier, overrides, n)


def corrected(setting: Setting, n: int, classifier: str, keep: str) -> Estimate:
    """How many errors are predicted as their label afterwards."""
    given = errors(setting, n, classifier, keep)
    return metrics.share([a.success for a in given])


def error_oracles(setting: Setting, n: int, classifier: str, keep: str) -> Estimate:
    """How many of the pictures show their label to both oracles."""
    given = errors(setting, n, classifier, keep)
    rows, images = answered(given)
    seen = both(setting, "class", images, [planted.CLASSES[given[i].problem.target] for i in rows])
    return metrics.share(seen + [False] * (n - len(rows)))


def error_cue(setting: Setting, n: int, keep: str) -> Estimate:
    """In how many of the corrected errors of tied classes both oracles see the cue, which was not there before."""
    given = [a for a in errors(setting, n, "planted_shortcut", keep) if planted.CLASSES[a.problem.target] in TIED]
    own, images = succeeded(given)
    seen = [
        both(setting, factor, images[i : i + 1], [value])[0]
        for i, a in enumerate(own) for factor, value in [planted.SHORTCUTS[planted.CLASSES[a.problem.target]]]
    ]  # fmt: skip
    return share_of(seen, f"{len(given)} of {n} errors are of tied classes, {len(own)} of these corrected")


def attributes(setting: Setting, n: int) -> tuple[Answer, ...]:
    """Pictures in snow towards sand, judged by the zero-shot classifier."""
    overrides = ("experiment=planted/attribute", "data.count=2000", f"seed={setting.seed}")
    return answers(setting, "planted_clip", overrides, n)


def attribute_clip(setting: Setting, n: int) -> Estimate:
    """How often the zero-shot classifier finds the new prompt more likely."""
    return metrics.share([a.success for a in attributes(setting, n)])


def attribute_oracles(setting: Setting, n: int) -> Estimate:
    """How often both oracles see the new background; how often the class stayed is in the note."""
    given = attributes(setting, n)
    rows, images = answered(given)
    data = planted.PlantedDataset("test", 2000, setting.seed, 0.0)
    labels = [planted.CLASSES[int(data.scenes.label[int(given[i].problem.picture.split("-")[1])])] for i in rows]
    seen, stayed = both(setting, "background", images, ["sand"] * len(rows)), both(setting, "class", images, labels)
    note = f"the class stays in {100 * sum(stayed) / n:.1f} %"
    return metrics.share(seen + [False] * (n - len(rows)), note)


# --- units and components ------------------------------------------------------------------------------------

NEURONS = "planted_seresnet"
UNITS = 24  # that are visualised
PER_CLASS = 3  # units of a class that are moved


def visualised(setting: Setting, n: int) -> tuple[Answer, ...]:
    """One picture each of the first `n` units, those that move a logit most."""
    overrides = ("experiment=planted/neuron_vis", f"task.units=top:{max(n, UNITS)}", f"seed={setting.seed}")
    return answers(setting, NEURONS, overrides, n)


def vis_training(setting: Setting, n: int) -> Estimate:
    """How often a picture excites its unit more than the best of 20,000 training renders."""
    given = visualised(setting, n)
    ratios = [a.record["activation_after"] / a.record["training_max"] for a in given if a.record is not None]
    return metrics.share([a.success for a in given], f"median {median(ratios):.2f} times the best render's")


def vis_word(setting: Setting, n: int) -> Estimate:
    """How often a picture excites its unit more than every picture of a word alone."""
    records = [a.record for a in visualised(setting, n)]
    return metrics.share([r is not None and r["activation_after"] > r["word_max"] for r in records])


def vis_preference(setting: Setting, n: int) -> Estimate:
    """How often both oracles see what the unit truly prefers, found by rendering."""
    given = visualised(setting, n)
    rows, images = answered(given)
    wanted = [preference(network(setting, NEURONS), given[i].problem.unit) for i in rows]
    hits = [
        both(setting, want.factor, image[None], [want.value])[0] for image, want in zip(images, wanted, strict=True)
    ]
    kinds = ", ".join(f"{count} by {factor}" for factor, count in Counter(w.factor for w in wanted).items())
    return metrics.share(hits + [False] * (n - len(rows)), kinds)


def units_of(setting: Setting, label: str, spurious: bool, count: int) -> list[int]:
    """The features that contribute most to a class among those that are truly spurious for it, or truly core."""
    classifier = network(setting, NEURONS)
    assert classifier.head is not None
    weight, own = classifier.head.weight[planted.CLASSES.index(label)].cpu(), roles(classifier, label)
    fit = [i for i, role in enumerate(own) if role.spurious == spurious and weight[i] * role.activation > 0]
    if spurious:
        fit = [i for i in fit if own[i].value == planted.SHORTCUTS[label][1]]
    return sorted(fit, key=lambda i: -float(weight[i]) * own[i].activation)[:count]


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
        for direction, cues in (("max", 0.0), ("min", 1.0)):
            more = (f"task.directions=[{direction}]", f"data.cues={cues}", f"seed={setting.seed}", *overrides(label))
            given = answers(setting, classifier, more, max(n // (2 * len(TIED)), 1))
            found += [Moved(a, label, direction == "max") for a in given]
    return found


def by_units(setting: Setting, n: int) -> list[Moved]:
    """Answers about units that hang on a tied class's cue."""
    return moved(setting, n, NEURONS, lambda label: (
        "experiment=planted/neuron_cf", f"task.units={units_of(setting, label, True, 2)}", f"task.label={label}",
    ))  # fmt: skip


def by_components(setting: Setting, n: int) -> list[Moved]:
    """Answers about the component of a tied class that its cue moves most."""
    return moved(setting, n, "planted_shortcut", lambda label: (
        "experiment=planted/npca_cf", f"task.components={{{label}: [{cue_component(setting, label)}]}}",
        f"task.images={n}",
    ))  # fmt: skip


@cache
def cue_component(setting: Setting, label: str) -> int:
    """Of a class's first components the one that its cue moves most, in standard deviations, by rendering."""
    parts = asked(setting, "planted_shortcut", ("experiment=planted/npca_cf",), 1)[0]
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
    return metrics.share(hits, ", ".join(f"{way} {sum(own)} of {len(own)}" for way, own in shares.items()))


WAYS = {"appears": True, "vanishes": False}


def class_stays(setting: Setting, n: int, given: Answers) -> Estimate:
    """How often both oracles still see the picture's class."""
    found = given(setting, n)
    hits = [m.answer.best is not None and both(setting, "class", m.answer.best[None], [m.label])[0] for m in found]
    return metrics.share(hits)


def confidence_follows(setting: Setting, n: int, given: Answers) -> Estimate:
    """How often the class's confidence rises where the cue was to appear, and falls where it was to vanish."""
    hits, changes = [], {True: [0.0], False: [0.0]}
    for m in given(setting, n):
        record = m.answer.record
        change = 0.0 if record is None else record["confidence_after"][m.label] - record["confidence_before"][m.label]
        hits.append(change > 0 if m.up else change < 0)
        changes[m.up].append(change)
    means = ", ".join(f"{way} {sum(changes[up]) / max(len(changes[up]) - 1, 1):+.2f}" for way, up in WAYS.items())
    return metrics.share(hits, f"mean change where the cue {means}")


def cam_separates(setting: Setting, n: int) -> Estimate:
    """The area under the ROC curve with which HiResCAM's share outside the object tells spurious from core units, both
    by rendering: spurious ones of the tied classes, core ones of the others. Each unit's mean over its counterfactuals,
    those apart whose object covers less than 2 % or more than 60 % of the picture."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    untied = [label for label in planted.CLASSES if label not in TIED][: len(TIED)]
    for label in (*TIED, *untied):
        units = units_of(setting, label, label in TIED, PER_CLASS)
        if not units:
            continue
        pictures = max(n // (2 * len(TIED) * PER_CLASS), 1)
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
                shares[label in TIED].append(fmean(own))
    return metrics.auc(shares[True], shares[False])


def object_share(answer: Answer) -> float:
    """Share of the picture that the object's mask covers."""
    return 1.0 if answer.mask is None else float(1 - answer.mask.mean())


ROWS = (
    Row("planted.disagreement", partial(disagreement, classes=TIED), 32, "%", 0.90),
    Row("planted.disagreement_cue", disagreement_cue, 32, "%", 0.80),
    Row("planted.disagreement_transfer", disagreement_transfer, 32, "%", 0.70),
    Row("planted.disagreement_others",
        partial(disagreement, classes=tuple(c for c in planted.CLASSES if c not in TIED)), 48, "%"),
    Row("planted.disagreement_clip", disagreement_clip, 32, "%", 0.80),
    Row("planted.error_corrected", partial(corrected, classifier="planted_weak", keep="background"), 64, "%", 0.90),
    Row("planted.error_oracles", partial(error_oracles, classifier="planted_weak", keep="background"), 64, "%", 0.70),
    Row("planted.error_shortcut.object_kept", partial(corrected, classifier="planted_shortcut", keep="foreground"), 64,
        "%", 0.90),
    Row("planted.error_shortcut_cue.object_kept", partial(error_cue, keep="foreground"), 64, "%", 0.80),
    Row("planted.error_shortcut.background_kept", partial(corrected, classifier="planted_shortcut", keep="background"),
        64, "%"),
    Row("planted.attribute_clip", attribute_clip, 64, "%", 0.90),
    Row("planted.attribute_oracles", attribute_oracles, 64, "%", 0.70),
    Row("planted.neuron_vis_training", vis_training, UNITS, "%", 0.90),
    Row("planted.neuron_vis_word", vis_word, UNITS, "%", 1.0),
    Row("planted.neuron_vis_preference", vis_preference, UNITS, "%", 0.80),
    *(
        Row(f"planted.{task}_{what}", partial(measure, given=given), 64, "%", bar)
        for task, given in (("neuron_cf", by_units), ("npca_cf", by_components))
        for what, measure, bar in (("cue", cue_moves, 0.80), ("class", class_stays, 0.85),
                                   ("confidence", confidence_follows, None))
    ),
    Row("planted.neuron_cf_cam", cam_separates, 48, "", 0.9),
)  # fmt: skip
