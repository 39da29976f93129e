"""Modes of counterfactual problems: to another class, from a misclassification to the true class, to an attribute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Embedder
from classifier_lens.runner.types import CaptionEdit, Problem, UserError
from classifier_lens.tasks.analysis.predictions import probabilities
from classifier_lens.tasks.prompts.caption_edit import format_prompt, replace_class, replace_phrase
from classifier_lens.tasks.prompts.context_search import ContextSearch
from classifier_lens.tasks.prompts.target_rules import RuleInputs, TargetRule, targets


@dataclass(frozen=True, kw_only=True)
class CounterfactualProblem(Problem):
    """source, target: class indices; in the mode `attribute` 0 and 1, the indices of the two prompts."""

    source: int
    target: int


@dataclass(frozen=True)
class CounterfactualTarget:
    """A target of an image. name: unique among the image's targets; mask_words, editable_from_noise, prompt_check: see
    `Problem`; label_index: the class that the classifier should predict for the original, None for the label."""

    name: str
    edit: CaptionEdit
    source: int
    target: int
    prompt_check: tuple[str, int] | None
    mask_words: str | None = None
    editable_from_noise: bool = False
    label_index: int | None = None


@dataclass(frozen=True)
class CounterfactualSettings:
    """Settings of all modes. target: a rule of `target_rules`, a class or several; attribute: `source` and `target`
    phrases, and `mask_words`: whether the `changed` words or those of the `class` make the mask; class_name_prompt:
    template of the image that checks whether the generator knows a class name; context_search: the search for context
    phrases of a misclassified object; cache: stores its images."""

    target: TargetRule
    attribute: Mapping[str, str]
    class_name_prompt: str
    captioner: Captioner
    context_search: ContextSearch
    cache: Cache


def class_targets(inputs: RuleInputs, settings: CounterfactualSettings) -> Iterator[CounterfactualTarget]:
    """Every class that the rule selects; the class name in the caption is replaced."""
    labels, label = inputs.classifier.labels, inputs.example.label
    target_classes, caption = targets(settings.target, inputs), settings.captioner.caption(inputs.example)
    for target in target_classes:
        edit = replace_class(caption, label, target)
        prompt_check = (format_prompt(settings.class_name_prompt, target), labels.index(target))
        yield CounterfactualTarget(target, edit, labels.index(label), labels.index(target), prompt_check)


def true_class_targets(inputs: RuleInputs, settings: CounterfactualSettings) -> Iterator[CounterfactualTarget]:
    """The image's label, if the image is misclassified. The caption names that class already; at most its context
    phrases change, to those with the highest confidence in the class."""
    labels, label = inputs.classifier.labels, inputs.example.label
    predicted = int(probabilities(inputs.classifier, [inputs.example.image])[0].argmax())
    if labels[predicted] == label:
        return
    true_class = labels.index(label)

    @torch.no_grad()
    def log_confidence(images: Tensor) -> Tensor:
        return inputs.classifier(images).logits.log_softmax(dim=-1)[:, true_class].cpu()

    caption = settings.captioner.caption(inputs.example)
    start = settings.context_search.search(caption, label, log_confidence, 1.0, inputs.task_inputs, settings.cache)
    yield CounterfactualTarget(
        label,
        edit=start.edit,
        source=predicted,
        target=true_class,
        prompt_check=(format_prompt(settings.class_name_prompt, label), true_class),
        mask_words=label,
        editable_from_noise=start.editable_from_noise,
        label_index=predicted,
    )


def attribute_targets(inputs: RuleInputs, settings: CounterfactualSettings) -> Iterator[CounterfactualTarget]:
    """The target phrase, if the caption contains the source phrase."""
    phrase, target = settings.attribute["source"], settings.attribute["target"]
    if (edit := replace_phrase(settings.captioner.caption(inputs.example), phrase, target)) is not None:
        words = {"changed": None, "class": inputs.example.label}
        region = check_choice("task.attribute.mask_words", settings.attribute["mask_words"], words)
        yield CounterfactualTarget(target, edit, 0, 1, None, words[region])


MODES: dict[str, Callable[[RuleInputs, CounterfactualSettings], Iterator[CounterfactualTarget]]] = {
    "class": class_targets, "error": true_class_targets, "attribute": attribute_targets,
}  # fmt: skip


def clip_of(classifier: Classifier) -> Embedder:
    """The CLIP model of a zero-shot classifier. Raises UserError for any other classifier."""
    clip: Embedder | None = getattr(classifier, "clip", None)
    if clip is None:
        raise UserError("task.mode=attribute: needs a zero-shot classifier, such as classifier=clip_zeroshot")
    return clip
