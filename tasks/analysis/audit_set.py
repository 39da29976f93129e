"""The classes and features of an audit, and their human annotations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NotRequired, TypedDict

from classifier_lens.data.salient_imagenet import FeatureAnnotations
from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.result_schema import Label
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.analysis.verdict import CORE, SPURIOUS
from classifier_lens.tasks.prompts.target_rules import resolve_class_name
from classifier_lens.tasks.units.activation_ranking import choose_units
from classifier_lens.tasks.units.addressing import FEATURES, Ranking, Unit

STRATIFIED = "stratified:"  # of task.classes, followed by a number of classes for each number of spurious features


class AnnotationFields(TypedDict):
    """The human annotation of a feature, None if there is none, and the group of its class."""

    annotation: Annotated[str | None, Label("Human annotation")]
    group: NotRequired[Annotated[str, Label("Group")]]
    animate: NotRequired[Annotated[bool, Label("Animate class")]]


def audited_classes(
    classes: Sequence[str] | str | None,
    annotations: FeatureAnnotations | None,
    classifier: Classifier,
    ranking: Ranking,
    seed: int,
) -> list[int]:
    """Indices of the audited classes: those of the given names; for None all annotated classes or, without annotations,
    all that training images are predicted as; for `stratified:<n>` n classes for each number of spurious features,
    sampled with the seed. Raises UserError for anything else, and for classes without annotations."""
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
            raise UserError(f"task.annotations: the index {label} is beyond the classifier's {len(names)} classes")
        if annotations is not None and label not in annotations.features:
            raise UserError(f"task.classes={names[label]}: has no annotations in task.annotations")
    return chosen


def audited_features(
    label: int, count: int, annotations: FeatureAnnotations | None, classifier: Classifier, ranking: Ranking
) -> list[tuple[int, Unit]]:
    """A class's first `count` features with their ranks: the annotated ones, or those with the highest contribution."""
    if annotations is not None:
        return [(feature.rank, Unit(FEATURES, feature.index)) for feature in annotations.features[label][:count]]
    units = choose_units(f"class:{classifier.labels[label]}:{count}", classifier, lambda: ranking)
    return list(enumerate(units, start=1))


def annotation_of(annotations: FeatureAnnotations | None, label: int, unit: Unit) -> AnnotationFields:
    """The human annotation of a class's feature."""
    if annotations is None:
        return {"annotation": None}
    is_core = next(feature.is_core for feature in annotations.features[label] if feature.index == unit.index)
    return {
        "annotation": CORE if is_core else SPURIOUS,
        "group": annotations.group(label),
        "animate": annotations.is_animate(label),
    }
