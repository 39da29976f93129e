"""Which classes and features an audit asks about, and what people say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from classifier_lens.data.salient_imagenet import Annotations
from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.analysis.label_agreement import CORE, SPURIOUS
from classifier_lens.tasks.prompts.target_rules import known_label
from classifier_lens.tasks.units.activation_ranking import choose_units
from classifier_lens.tasks.units.addressing import FEATURES, Ranking, Unit

LEVELS = "levels:"  # of task.classes: so many classes of every number of spurious features


def audited_classes(
    classes: Sequence[str] | str | None, labels: Annotations | None, classifier: Classifier, ranking: Ranking, seed: int
) -> list[int]:
    """The numbers of the classes: those named; for None all with labels, or all that training pictures are predicted
    as; `levels:<n>`: n of each number of features that people found spurious, drawn with the seed. Raises UserError for
    anything else, and for classes without labels."""
    names = classifier.labels
    if isinstance(classes, str):
        count = classes.removeprefix(LEVELS)
        if labels is None or not classes.startswith(LEVELS) or not count.isdigit() or int(count) < 1:
            raise UserError(f"task.classes={classes}: allowed are names as [a, b] and, with task/labels, {LEVELS}<n>")
        chosen = labels.subset(int(count), seed)
    elif classes is not None:
        chosen = [names.index(known_label("task.classes", name, names)) for name in classes]
    else:
        predicted = ranking.by_class.any(dim=1).nonzero()[:, 0].tolist()
        chosen = predicted if labels is None else sorted(labels.features)
    for label in chosen:
        if label >= len(names):
            raise UserError(f"task.labels: class {label} is none of the classifier's {len(names)}")
        if labels is not None and label not in labels.features:
            raise UserError(f"task.classes={names[label]}: the labels say nothing of it")
    return chosen


def audited_features(
    label: int, count: int, labels: Annotations | None, classifier: Classifier, ranking: Ranking
) -> list[tuple[int, Unit]]:
    """A class's first `count` features with their ranks: those with labels, or those that contribute most."""
    if labels is not None:
        return [(known.rank, Unit(FEATURES, known.index)) for known in labels.features[label][:count]]
    named = f"class:{classifier.labels[label]}:{count}"
    return list(enumerate(choose_units(named, classifier, lambda: ranking), start=1))


def known_of(labels: Annotations | None, label: int, unit: Unit) -> dict[str, Any]:
    """What people say of a class's feature, and of which group the class is."""
    if labels is None:
        return {"label": None}
    core = next(feature.core for feature in labels.features[label] if feature.index == unit.index)
    return {
        "label": CORE if core else SPURIOUS, "group": labels.group(label), "animate": labels.is_animate(label),
    }  # fmt: skip
