"""Rules that choose the target class of an image."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from classifier_lens.runner.configuration.value_ranges import Names
from classifier_lens.runner.protocols import Classifier, Dataset, TaskInputs
from classifier_lens.runner.types import Example, UserError, ensure_finite, matching_names


@dataclass(frozen=True)
class RuleInputs:
    """What a rule may use: the image, the inputs of its task, and the problem's seed."""

    example: Example
    task_inputs: TaskInputs
    seed: int

    @property
    def dataset(self) -> Dataset:
        return self.task_inputs.dataset

    @property
    def classifier(self) -> Classifier:
        return self.task_inputs.classifier


def nearest(inputs: RuleInputs) -> list[str]:
    """The class that is most easily confused with the label according to the data set; the classifier must know it."""
    label = inputs.dataset.nearest_class(inputs.example.label)
    if label is None:
        raise UserError(
            f"task.target=nearest: the data set names no nearest class of '{inputs.example.label}'; use confusion"
        )
    return [resolve_class_name("task.target (nearest)", label, inputs.classifier.labels)]


def confusion(inputs: RuleInputs) -> list[str]:
    """The wrong class with the highest logit for this image."""
    labels = inputs.classifier.labels
    with torch.no_grad():
        logits = ensure_finite(inputs.classifier(inputs.example.image[None]).logits, "the classifier's logits")
    others = logits[0].clone()
    others[labels.index(inputs.example.label)] = -torch.inf
    return [labels[int(others.argmax())]]


def cluster(inputs: RuleInputs) -> list[str]:
    """A class of the same kind, sampled with the problem's seed from those of the data set that the classifier
    knows."""
    labels = inputs.classifier.labels
    similar = [label for label in inputs.dataset.similar_classes(inputs.example.label) if matching_names(label, labels)]
    if not similar:
        raise UserError(
            f"task.target=cluster: the data set and the classifier have no class of the kind of "
            f"'{inputs.example.label}' in common; use confusion"
        )
    classes = [resolve_class_name("task.target (cluster)", label, labels) for label in similar]
    return [_sample(classes, inputs.seed)]


def random_class(inputs: RuleInputs) -> list[str]:
    """Any other class, sampled with the problem's seed."""
    return [_sample(all_others(inputs), inputs.seed)]


def _sample(labels: Sequence[str], seed: int) -> str:
    """One of the labels, each equally likely."""
    return labels[int(torch.randint(len(labels), (), generator=torch.Generator().manual_seed(seed)))]


def all_others(inputs: RuleInputs) -> list[str]:
    """All other classes."""
    return [label for label in inputs.classifier.labels if label != inputs.example.label]


TARGET_RULES: dict[str, Callable[[RuleInputs], list[str]]] = {
    "nearest": nearest, "cluster": cluster, "confusion": confusion, "random": random_class, "all": all_others,
}  # fmt: skip


TargetRule = str | Names  # a rule's name, a class, or several classes


def targets_per_image(rule: TargetRule, labels: Sequence[str]) -> int | None:
    """The number of targets per image, None if images differ in it."""
    if not isinstance(rule, str):
        return None
    return len(labels) - 1 if rule == "all" else 1


def targets(rule: TargetRule, inputs: RuleInputs) -> list[str]:
    """The targets of a rule, or the class of that name, or, of several classes, those that are not the image's label.

    Raises UserError for an unknown class.
    """
    if not isinstance(rule, str):
        classes = [resolve_class_name("task.target", name, inputs.classifier.labels) for name in rule]
        return [label for label in dict.fromkeys(classes) if label != inputs.example.label]
    if rule in TARGET_RULES:
        if rule in inputs.classifier.labels:
            raise UserError(
                f"task.target={rule}: is a rule and a class of the classifier; write [{rule}] for the class"
            )
        return TARGET_RULES[rule](inputs)
    target = resolve_class_name("task.target", rule, inputs.classifier.labels)
    if target == inputs.example.label:
        raise UserError(f"task.target={rule}: is the class of {inputs.example.name} already; choose another one")
    return [target]


def check_target_rule(rule: TargetRule, labels: Sequence[str]) -> None:
    """Raise UserError for a target class that is none of the labels."""
    for name in [rule] if isinstance(rule, str) else rule:
        if name not in TARGET_RULES or not isinstance(rule, str):
            resolve_class_name("task.target", name, labels)


def class_indices(dataset: Dataset, label: str, labels: Sequence[str]) -> list[int]:
    """The positions of the images of one of the classifier's labels, without those of another label that differs from
    it by letter case alone."""
    data_labels = matching_names(label, dataset.labels)
    if len(data_labels) == 1 and label not in matching_names(data_labels[0], labels):
        return []
    return dataset.indices(label)


def resolve_class_names(key: str, names: Sequence[str] | None, labels: Sequence[str]) -> list[str]:
    """The classes with these names, all classes for None. Raises UserError as `resolve_class_name` does."""
    return list(labels) if names is None else [resolve_class_name(key, name, labels) for name in names]


def resolve_class_name(key: str, label: str, labels: Sequence[str]) -> str:
    """The class with that name, or the only one that differs from it by letter case alone. Raises UserError if there
    are several, and with the most similar names if there is none."""
    matches = matching_names(label, labels)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"{key}={label}: {' and '.join(matches)} differ by letter case alone; write one of them")
    folded: dict[str, str] = {name.casefold(): name for name in labels}
    similar = difflib.get_close_matches(label.casefold(), folded, n=3, cutoff=0.4) or list(folded)[:5]
    raise UserError(
        f"{key}={label}: no class of the classifier; nearest are {', '.join(folded[name] for name in similar)}"
    )
