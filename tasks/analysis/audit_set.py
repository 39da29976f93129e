"""Which classes and features an audit asks about, and what people say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from classifier_lens.data.salient_imagenet import FeatureAnnotations
from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.analysis.label_agreement import CORE, SPURIOUS
from classifier_lens.tasks.prompts.target_rules import resolve_class_name
from classifier_lens.tasks.units.activation_ranking import choose_units
from classifier_lens.tasks.units.addressing import FEATURES, Ranking, Unit

STRATIFIED = "stratified:"  # of task.classes: so many classes of every number of spurious features


def audited_classes(
    classes: Sequence[str] | str | None,
    annotations: FeatureAnnotations | None,
    classifier: Classifier,
    ranking: Ranking,
    seed: int,
) -> list[int]:
    """The numbers of the classes: those named; for None all with labels, or all that training pictures are predicted
    as; `stratified:<n>`: n of each number of features that are annotated as spurious, sampled with the seed. Raises
    UserError for anything else, and for classes without labels."""
    names = classifier.labels
    if isinstance(classes, str):
        count = classes.removeprefix(STRATIFIED)
        if annotations is None or not classes.startswith(STRATIFIED) or not count.isdigit() or int(count) < 1:
            raise UserError(
                f"task.classes={classes}: allowed are names as [a, b] and, with task/annotations, {STRATIFIED}<n>"
            )
        chosen = annotations.stratified_sample(int(count), seed)
    elif classes is not None:
        chosen = [names.index(resolve_class_name("task.classes", name, names)) for name in classes]
    else:
        predicted = ranking.class_means.any(dim=1).nonzero()[:, 0].tolist()
        chosen = predicted if annotations is None else sorted(annotations.features)
    for label in chosen:
        if label >= len(names):
            raise UserError(f"task.annotations: class {label} is none of the classifier's {len(names)}")
        if annotations is not None and label not in annotations.features:
            raise UserError(f"task.classes={names[label]}: the labels say nothing of it")
    return chosen


def audited_features(
    label: int, count: int, annotations: FeatureAnnotations | None, classifier: Classifier, ranking: Ranking
) -> list[tuple[int, Unit]]:
    """A class's first `count` features with their ranks: those with labels, or those that contribute most."""
    if annotations is not None:
        return [(known.rank, Unit(FEATURES, known.index)) for known in annotations.features[label][:count]]
    named = f"class:{classifier.labels[label]}:{count}"
    return list(enumerate(choose_units(named, classifier, lambda: ranking), start=1))


def annotation_of(annotations: FeatureAnnotations | None, label: int, unit: Unit) -> dict[str, Any]:
    """What people say of a class's feature, and of which group the class is."""
    if annotations is None:
        return {"label": None}
    core = next(feature.is_core for feature in annotations.features[label] if feature.index == unit.index)
    return {
        "label": CORE if core else SPURIOUS,
        "group": annotations.group(label),
        "animate": annotations.is_animate(label),
    }
