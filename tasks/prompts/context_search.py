"""What stands around an object: of many phrases those whose pictures raise or lower a score most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.configuration.value_ranges import Names, PerProblemCount
from classifier_lens.runner.protocols import Cache, TaskInputs
from classifier_lens.runner.types import CaptionEdit, UserError, ensure_finite, indefinite_article
from classifier_lens.tasks.prompts.caption_edit import replace_phrase, replace_phrases
from classifier_lens.tasks.units.word_activations import format_phrase_prompt, generate_images

ScoreFunction = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, " n"]]


@dataclass(frozen=True)
class ContextSearch:
    """A search for the words that a counterfactual starts with, as `word_activations.py` does for an object's name.

    context_phrases: that may stand behind a class's name, a list for each kind of thing, such as grounds and what
    stands on them, in the order of captions; a caption has at most one of a kind. None to leave captions as they are;
    resample_noise: whether what is free starts from noise where words change; images_per_phrase: pictures of each
    phrase; prompt: template of these, with {phrase} for the class and what stands behind it."""

    context_phrases: Sequence[Names] | None
    resample_noise: bool
    images_per_phrase: PerProblemCount
    prompt: str

    def __post_init__(self) -> None:
        for kind in self.context_phrases or ():
            if isinstance(kind, str):
                raise UserError(
                    f"task.context_search.context_phrases: '{kind}' stands alone; wanted are lists, as [[{kind}, …]]"
                )
        format_phrase_prompt(self.prompt, "", "task.context_search.prompt")

    def search(
        self, caption: str, label: str, score: ScoreFunction, sign: float, world: TaskInputs, cache: Cache
    ) -> dict[str, Any]:
        """The `edit` of a problem, and whether it is `editable_from_noise`: of each kind the phrase that raises sign ·
        score most takes the place of the caption's own, or is added behind what stands before it.

        What a phrase does is the mean of sign · score over its plain pictures, less that of the caption's own phrase of
        its kind, or of the class alone where the caption has none. Kinds whose best does less than half of what the
        best of all does stay as they are, and so does the caption where nothing raises the score.
        """

        def mean(phrase: str) -> float:
            values = score(self._pictures(label, phrase, world, cache))
            return sign * ensure_finite(values, f"what images of '{phrase}' do").mean().item()

        owns = [next((p for p in kind if replace_phrase(caption, p, p)), None) for kind in self.context_phrases or ()]
        bests, gains = [], []
        for kind, own in zip(self.context_phrases or (), owns, strict=True):
            means = {phrase: mean(phrase) for phrase in kind}
            bests.append(max(means, key=lambda phrase: means[phrase]))
            gains.append(means[bests[-1]] - (mean("") if own is None else means[own]))
        changes: dict[str, str] = {}
        place = label  # what a phrase that is added stands behind
        for own, best, gain in zip(owns, bests, gains, strict=True):
            if gain > 0 and gain >= max(gains) / 2:
                changes |= {place: f"{changes.get(place, place)} {best}"} if own is None else {own: best}
            place = own or place
        edit = replace_phrases(caption, changes)
        return {
            "edit": edit or CaptionEdit.unchanged(caption, label),
            "editable_from_noise": self.resample_noise and edit is not None,
        }

    def _pictures(self, label: str, phrase: str, world: TaskInputs, cache: Cache) -> Float[Tensor, "n 3 h w"]:
        words = f"{indefinite_article(label)} {label} {phrase}".strip()
        return generate_images(words, self.prompt, self.images_per_phrase, world, cache)
