"""Rules that choose the class an image should be called."""

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
    """What a rule may look at: the picture, what the run has, and the problem's seed."""

    example: Example
    world: TaskInputs
    seed: int

    @property
    def dataset(self) -> Dataset:
        return self.world.dataset

    @property
    def classifier(self) -> Classifier:
        return self.world.classifier


def nearest(choice: RuleInputs) -> list[str]:
    """The class that the data set calls most easily confused with this one; the classifier must know it."""
    label = choice.dataset.nearest_class(choice.example.label)
    if label is None:
        raise UserError(f"task.target=nearest: the data set knows none for '{choice.example.label}'; use confusion")
    return [resolve_class_name("task.target (nearest)", label, choice.classifier.labels)]


def confusion(choice: RuleInputs) -> list[str]:
    """The strongest wrong class of the classifier on this picture."""
    labels = choice.classifier.labels
    with torch.no_grad():
        logits = ensure_finite(choice.classifier(choice.example.image[None]).logits, "the classifier's logits")[
            0
        ].clone()
    logits[labels.index(choice.example.label)] = -torch.inf
    return [labels[int(logits.argmax())]]


def cluster(choice: RuleInputs) -> list[str]:
    """A class of the same kind, drawn with the problem's seed from those of the data set that the classifier knows."""
    labels = choice.classifier.labels
    named = choice.dataset.similar_classes(choice.example.label)
    others = [
        resolve_class_name("task.target (cluster)", label, labels) for label in named if matching_names(label, labels)
    ]
    if not others:
        raise UserError(
            f"task.target=cluster: the data set and the classifier have no class of the kind of "
            f"'{choice.example.label}' in common; use confusion"
        )
    return [_sample(others, choice.seed)]


def random_class(choice: RuleInputs) -> list[str]:
    """Any other class, drawn with the problem's seed."""
    return [_sample(all_others(choice), choice.seed)]


def _sample(labels: Sequence[str], seed: int) -> str:
    """One of the labels, each equally likely."""
    return labels[int(torch.randint(len(labels), (), generator=torch.Generator().manual_seed(seed)))]


def all_others(choice: RuleInputs) -> list[str]:
    """All other classes."""
    return [label for label in choice.classifier.labels if label != choice.example.label]


TARGET_RULES: dict[str, Callable[[RuleInputs], list[str]]] = {
    "nearest": nearest, "cluster": cluster, "confusion": confusion, "random": random_class, "all": all_others,
}  # fmt: skip


TargetRule = str | Names  # a rule's name, a class, or several classes


def targets_per_image(rule: TargetRule, labels: Sequence[str]) -> int | None:
    """How many targets every picture has, None where one has more than another."""
    if not isinstance(rule, str):
        return None
    return len(labels) - 1 if rule == "all" else 1


def targets(rule: TargetRule, choice: RuleInputs) -> list[str]:
    """Targets by a rule's name, or the class of that name, or of several classes those that the picture is not of.

    Raises UserError for an unknown one.
    """
    if not isinstance(rule, str):
        known = [resolve_class_name("task.target", name, choice.classifier.labels) for name in rule]
        return [label for label in dict.fromkeys(known) if label != choice.example.label]
    if rule in TARGET_RULES:
        if rule in choice.classifier.labels:
            raise UserError(f"task.target={rule}: is a rule and a class of the classifier; [{rule}] is the class")
        return TARGET_RULES[rule](choice)
    target = resolve_class_name("task.target", rule, choice.classifier.labels)
    if target == choice.example.label:
        raise UserError(f"task.target={rule}: {choice.example.name} is of this class already; choose another")
    return [target]


def check_target_rule(rule: TargetRule, labels: Sequence[str]) -> None:
    """Raise UserError for a class that is asked for by its name and is none of the labels."""
    for name in [rule] if isinstance(rule, str) else rule:
        if name not in TARGET_RULES or not isinstance(rule, str):
            resolve_class_name("task.target", name, labels)


def class_indices(dataset: Dataset, label: str, labels: Sequence[str]) -> list[int]:
    """The positions of the pictures of one of the classifier's labels: none of another label's that differs by letter
    case alone."""
    own = matching_names(label, dataset.labels)
    return [] if len(own) == 1 and label not in matching_names(own[0], labels) else dataset.indices(label)


def resolve_class_names(key: str, names: Sequence[str] | None, labels: Sequence[str]) -> list[str]:
    """The classes of these names, all for None. Raises UserError as `resolve_class_name` does."""
    return list(labels) if names is None else [resolve_class_name(key, name, labels) for name in names]


def resolve_class_name(key: str, label: str, labels: Sequence[str]) -> str:
    """The class of that name, or the only one that differs by letter case alone. Raises UserError if there are several,
    and with the nearest names if there is none."""
    meant = matching_names(label, labels)
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UserError(f"{key}={label}: {' and '.join(meant)} differ by letter case alone; write one of them")
    folded: dict[str, str] = {name.casefold(): name for name in labels}
    near = difflib.get_close_matches(label.casefold(), folded, n=3, cutoff=0.4) or list(folded)[:5]
    raise UserError(f"{key}={label}: no class of the classifier; nearest are {', '.join(folded[n] for n in near)}")
