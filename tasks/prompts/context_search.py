"""What stands around an object: of many phrases those whose pictures raise or lower a score most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.configuration.value_ranges import Names, Repeats
from classifier_lens.runner.protocols import Cache, World
from classifier_lens.runner.types import Edit, UserError, article, finite
from classifier_lens.tasks.prompts.caption_edit import replace_phrase, replace_phrases
from classifier_lens.tasks.units.word_activations import phrased, pictures_of

Score = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, " n"]]


@dataclass(frozen=True)
class Surroundings:
    """A search for the words that a counterfactual starts with, as `worded` searches for an object's name.

    phrases: that may stand behind a class's name, a list for each kind of thing, such as grounds and what stands on
    them, in the order of captions; a caption has at most one of a kind. None to leave captions as they are; redraw:
    whether what is free starts from noise where words change; samples: pictures of each phrase; prompt: template of
    these, with {phrase} for the class and what stands behind it.
    """

    phrases: Sequence[Names] | None
    redraw: bool
    samples: Repeats
    prompt: str

    def __post_init__(self) -> None:
        for kind in self.phrases or ():
            if isinstance(kind, str):
                raise UserError(f"task.surroundings.phrases: '{kind}' stands alone; wanted are lists, as [[{kind}, …]]")
        phrased(self.prompt, "", "task.surroundings.prompt")

    def start(self, caption: str, label: str, score: Score, sign: float, world: World, cache: Cache) -> dict[str, Any]:
        """The `edit` of a problem, and whether it is `redrawn`: of each kind the phrase that raises sign · score most
        takes the place of the caption's own, or is added behind what stands before it.

        What a phrase does is the mean of sign · score over its plain pictures, less that of the caption's own phrase of
        its kind, or of the class alone where the caption has none. Kinds whose best does less than half of what the
        best of all does stay as they are, and so does the caption where nothing raises the score.
        """

        def mean(phrase: str) -> float:
            values = score(self._pictures(label, phrase, world, cache))
            return sign * finite(values, f"what images of '{phrase}' do").mean().item()

        owns = [next((p for p in kind if replace_phrase(caption, p, p)), None) for kind in self.phrases or ()]
        bests, gains = [], []
        for kind, own in zip(self.phrases or (), owns, strict=True):
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
        return {"edit": edit or Edit.unchanged(caption, label), "redrawn": self.redraw and edit is not None}

    def _pictures(self, label: str, phrase: str, world: World, cache: Cache) -> Float[Tensor, "n 3 h w"]:
        words = f"{article(label)} {label} {phrase}".strip()
        return pictures_of(words, self.prompt, self.samples, world, cache)
