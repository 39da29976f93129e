"""What stands around an object: of many phrases the one in whose pictures a score is highest or lowest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from runner.types import Cache, Edit, World, article
from tasks.edits import replace_phrase
from tasks.pictures import at_least_one
from tasks.worded import phrased, pictures_of

Score = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, " n"]]


@dataclass(frozen=True)
class Surroundings:
    """A search for the phrase that a counterfactual starts with, as `worded` searches for an object's name.

    phrases: that may stand behind a class's name, None to leave captions as they are; samples: pictures of each;
    prompt: template of these, with {phrase} for the class and what stands behind it.
    """

    phrases: Sequence[str] | None
    samples: int
    prompt: str

    def __post_init__(self) -> None:
        at_least_one("task.surroundings.samples", self.samples)
        phrased(self.prompt, "", "task.surroundings.prompt")

    def edit(self, caption: str, label: str, score: Score, sign: float, world: World, cache: Cache) -> Edit:
        """The caption with the phrase in whose pictures sign · score is highest on average, in the place of its own. A
        caption with none of the phrases stays as it is, and so does one that has the best already."""
        phrases = self.phrases or ()
        own = [phrase for phrase in phrases if replace_phrase(caption, phrase, phrase) is not None]
        if not own:
            return Edit.unchanged(caption, label)
        means = {p: sign * score(self._pictures(label, p, world, cache)).mean().item() for p in phrases}
        best = max(means, key=lambda phrase: means[phrase])
        edit = None if best in own else replace_phrase(caption, own[0], best)
        return edit or Edit.unchanged(caption, label)

    def _pictures(self, label: str, phrase: str, world: World, cache: Cache) -> Float[Tensor, "n 3 h w"]:
        words = f"{article(label)} {label} {phrase}"
        return pictures_of(words, self.prompt, self.samples, world, cache)
