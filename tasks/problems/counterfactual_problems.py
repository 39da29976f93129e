"""The three kinds of counterfactual questions: to another class, from an error to the truth, to another attribute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Embedder
from classifier_lens.runner.types import Edit, Problem, UserError
from classifier_lens.tasks.problems.image_problems import probabilities
from classifier_lens.tasks.prompts.caption_edit import prompt_of, replace_class, replace_phrase
from classifier_lens.tasks.prompts.context_search import Surroundings
from classifier_lens.tasks.prompts.target_rules import Choice, Rule, targets


@dataclass(frozen=True, kw_only=True)
class Flip(Problem):
    """source, target: class indices; of an attribute 0 and 1, the two prompts."""

    source: int
    target: int


@dataclass(frozen=True)
class Question:
    """What is asked of a picture: `name` tells it from the picture's other questions; words, redrawn: see `Problem`;
    shows: what the classifier should predict in it, None for its own class."""

    name: str
    edit: Edit
    source: int
    target: int
    claim: tuple[str, int] | None
    words: str | None = None
    redrawn: bool = False
    shows: int | None = None


@dataclass(frozen=True)
class Wish:
    """What the user asked for: target: a rule of `target_rules`, a class or several; attribute: source and target
    phrases, and the words whose region is masked, `changed` or those of the `class`; prompt: a template that shows what
    the generator makes of a class's name; surroundings: what may stand around a misclassified object; cache: keeps its
    pictures."""

    target: Rule
    attribute: Mapping[str, str]
    prompt: str
    captioner: Captioner
    surroundings: Surroundings
    cache: Cache


def to_class(choice: Choice, wish: Wish) -> Iterator[Question]:
    """To every class that the rule names; the caption's class name is exchanged."""
    labels, label = choice.classifier.labels, choice.example.label
    wanted, caption = targets(wish.target, choice), wish.captioner.caption(choice.example)
    for target in wanted:
        edit = replace_class(caption, label, target)
        claim = (prompt_of(wish.prompt, target), labels.index(target))
        yield Question(target, edit, labels.index(label), labels.index(target), claim)


def to_truth(choice: Choice, wish: Wish) -> Iterator[Question]:
    """To the picture's own class, where it is misclassified. The caption names the truth already; at most the words
    for what stands around the object change, to those with which the classifier is surest of it."""
    labels, label = choice.classifier.labels, choice.example.label
    predicted = int(probabilities(choice.classifier, [choice.example.image])[0].argmax())
    if labels[predicted] != label:
        claim = (prompt_of(wish.prompt, label), labels.index(label))
        own = labels.index(label)

        @torch.no_grad()
        def log_confidence(images: Tensor) -> Tensor:
            return choice.classifier(images).logits.log_softmax(dim=-1)[:, own].cpu()

        caption = wish.captioner.caption(choice.example)
        start = wish.surroundings.start(caption, label, log_confidence, 1.0, choice.world, wish.cache)
        yield Question(label, source=predicted, target=own, claim=claim, words=label, shows=predicted, **start)


def to_attribute(choice: Choice, wish: Wish) -> Iterator[Question]:
    """To another phrase, where the caption has the first one."""
    phrase, target = wish.attribute["source"], wish.attribute["target"]
    if (edit := replace_phrase(wish.captioner.caption(choice.example), phrase, target)) is not None:
        words = {"changed": None, "class": choice.example.label}
        region = check_choice("task.attribute.words", wish.attribute["words"], words)
        yield Question(target, edit, 0, 1, None, words[region])


QUESTIONS: dict[str, Callable[[Choice, Wish], Iterator[Question]]] = {
    "class": to_class, "error": to_truth, "attribute": to_attribute,
}  # fmt: skip


def embedder_of(classifier: Classifier) -> Embedder:
    """The CLIP model of a zero-shot classifier. Raises UserError for any other classifier."""
    clip: Embedder | None = getattr(classifier, "clip", None)
    if clip is None:
        raise UserError("task.mode=attribute: needs a zero-shot classifier, such as classifier=clip_zeroshot")
    return clip
