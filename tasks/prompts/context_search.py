"""Search for phrases of an object's context: those whose generated images raise or lower a score most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.configuration.value_ranges import Names, PerProblemCount
from classifier_lens.runner.protocols import Cache, TaskInputs
from classifier_lens.runner.types import CaptionEdit, UserError, ensure_finite, indefinite_article
from classifier_lens.tasks.prompts.caption_edit import replace_phrase, replace_phrases
from classifier_lens.tasks.units.word_activations import format_phrase_prompt, generate_images

ScoreFunction = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, " n"]]


@dataclass(frozen=True)
class ContextEdit:
    """The caption edit of a problem, and whether its editable region starts from noise, see `Problem`."""

    edit: CaptionEdit
    editable_from_noise: bool


@dataclass(frozen=True)
class _KindResult:
    """Of one kind of phrases: the caption's current phrase, the best one, and its gain in score over the current."""

    current: str | None
    best: str
    gain: float


@dataclass(frozen=True)
class ContextSearch:
    """A search for the context phrases of the caption that a counterfactual starts with.

    context_phrases: phrases that may follow a class name, one list per kind (such as places, and objects in them), in
    the order of captions; a caption has at most one of a kind; None leaves captions as they are; resample_noise:
    whether the editable region starts from noise if the caption changes; images_per_phrase: generated images per
    phrase; prompt: their template, with {phrase} for the class name and the phrase."""

    context_phrases: Sequence[Names] | None
    resample_noise: bool
    images_per_phrase: PerProblemCount
    prompt: str

    def __post_init__(self) -> None:
        for kind in self.context_phrases or ():
            if isinstance(kind, str):
                raise UserError(
                    f"task.context_search.context_phrases: '{kind}' is no list; give one list per kind, [[{kind}, …]]"
                )
        format_phrase_prompt(self.prompt, "", "task.context_search.prompt")

    def search(
        self, caption: str, label: str, score: ScoreFunction, sign: float, inputs: TaskInputs, cache: Cache
    ) -> ContextEdit:
        """The caption with the phrase of each kind that raises sign · score most. It replaces the caption's phrase of
        that kind or, if there is none, is added after the class name and earlier phrases.

        The gain of a phrase is the mean of sign · score over its generated images, minus the mean of the caption's
        current phrase of that kind, or of the class name alone. Kinds whose best gain is not positive, or below half
        of the largest gain, are left as they are.
        """

        def mean_score(phrase: str) -> float:
            values = score(self._images(label, phrase, inputs, cache))
            return sign * ensure_finite(values, f"the score of images of '{phrase}'").mean().item()

        def search_kind(kind: Names) -> _KindResult:
            current = next((phrase for phrase in kind if replace_phrase(caption, phrase, phrase)), None)
            means = {phrase: mean_score(phrase) for phrase in kind}
            best = max(means, key=lambda phrase: means[phrase])
            return _KindResult(current, best, means[best] - (mean_score("") if current is None else means[current]))

        kinds = [search_kind(kind) for kind in self.context_phrases or ()]
        edit = replace_phrases(caption, _changes(label, kinds))
        return ContextEdit(edit or CaptionEdit.unchanged(caption, label), self.resample_noise and edit is not None)

    def _images(self, label: str, phrase: str, inputs: TaskInputs, cache: Cache) -> Float[Tensor, "n 3 h w"]:
        words = f"{indefinite_article(label)} {label} {phrase}".strip()
        return generate_images(words, self.prompt, self.images_per_phrase, inputs, cache)


def _changes(label: str, kinds: Sequence[_KindResult]) -> dict[str, str]:
    """The phrases of a caption that are replaced, old -> new."""
    changes: dict[str, str] = {}
    preceding = label  # the words after which a new phrase is added
    for kind in kinds:
        if kind.gain > 0 and kind.gain >= max(k.gain for k in kinds) / 2:
            if kind.current is None:
                changes[preceding] = f"{changes.get(preceding, preceding)} {kind.best}"
            else:
                changes[kind.current] = kind.best
        preceding = kind.current or preceding
    return changes
