"""The three kinds of counterfactual questions: to another class, from an error to the truth, to another attribute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Embedder
from classifier_lens.runner.types import CaptionEdit, Problem, UserError
from classifier_lens.tasks.problems.image_problems import probabilities
from classifier_lens.tasks.prompts.caption_edit import format_prompt, replace_class, replace_phrase
from classifier_lens.tasks.prompts.context_search import ContextSearch
from classifier_lens.tasks.prompts.target_rules import RuleInputs, TargetRule, targets


@dataclass(frozen=True, kw_only=True)
class CounterfactualProblem(Problem):
    """source, target: class indices; of an attribute 0 and 1, the two prompts."""

    source: int
    target: int


@dataclass(frozen=True)
class CounterfactualTarget:
    """What is asked of a picture: `name` tells it from the picture's other questions; mask_words, editable_from_noise,
    prompt_check: see `Problem`; label_index: what the classifier should predict in it, None for its own class."""

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
    """What the user asked for: target: a rule of `target_rules`, a class or several; attribute: source and target
    phrases, and the words whose region is masked, `changed` or those of the `class`; prompt: a template that shows what
    the generator makes of a class's name; context_search: what may stand around a misclassified object; cache: keeps
    its pictures."""

    target: TargetRule
    attribute: Mapping[str, str]
    prompt: str
    captioner: Captioner
    context_search: ContextSearch
    cache: Cache


def class_targets(choice: RuleInputs, settings: CounterfactualSettings) -> Iterator[CounterfactualTarget]:
    """To every class that the rule names; the caption's class name is exchanged."""
    labels, label = choice.classifier.labels, choice.example.label
    wanted, caption = targets(settings.target, choice), settings.captioner.caption(choice.example)
    for target in wanted:
        edit = replace_class(caption, label, target)
        prompt_check = (format_prompt(settings.prompt, target), labels.index(target))
        yield CounterfactualTarget(target, edit, labels.index(label), labels.index(target), prompt_check)


def true_class_targets(choice: RuleInputs, settings: CounterfactualSettings) -> Iterator[CounterfactualTarget]:
    """To the picture's own class, where it is misclassified. The caption names the truth already; at most the words
    for what stands around the object change, to those with which the classifier is surest of it."""
    labels, label = choice.classifier.labels, choice.example.label
    predicted = int(probabilities(choice.classifier, [choice.example.image])[0].argmax())
    if labels[predicted] != label:
        prompt_check = (format_prompt(settings.prompt, label), labels.index(label))
        own = labels.index(label)

        @torch.no_grad()
        def log_confidence(images: Tensor) -> Tensor:
            return choice.classifier(images).logits.log_softmax(dim=-1)[:, own].cpu()

        caption = settings.captioner.caption(choice.example)
        start = settings.context_search.search(caption, label, log_confidence, 1.0, choice.world, settings.cache)
        yield CounterfactualTarget(
            label,
            source=predicted,
            target=own,
            prompt_check=prompt_check,
            mask_words=label,
            label_index=predicted,
            **start,
        )


def attribute_targets(choice: RuleInputs, settings: CounterfactualSettings) -> Iterator[CounterfactualTarget]:
    """To another phrase, where the caption has the first one."""
    phrase, target = settings.attribute["source"], settings.attribute["target"]
    if (edit := replace_phrase(settings.captioner.caption(choice.example), phrase, target)) is not None:
        words = {"changed": None, "class": choice.example.label}
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
