"""Warnings about single results, each for a failure that was observed and measured (DiG-IN, Fig. 36)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.optimization.loop import OptimizationState
from classifier_lens.runner.protocols import Classifier, TextToImage
from classifier_lens.runner.types import Problem, Reference

# RMS difference of start and original in the preserved region, images in [0, 1]; beyond it the image looks different.
MAX_START_RMS = 0.1
MIN_RELATIVE_DECREASE = 0.01  # share by which the total has to fall
HIGH_CONFIDENCE = 0.99  # confidence in the target beyond which more steps only bring the image nearer to its original
PROMPT_CHECK_SEED = 0  # of the image that shows whether the generator knows a class name


class ResultWarnings:
    """Warnings about the results of a run; the image of each class name is generated once."""

    def __init__(self, generator: TextToImage, classifier: Classifier) -> None:
        self.generator, self.classifier = generator, classifier
        self._tried: dict[tuple[str, int], int | None] = {}

    def __call__(
        self,
        problems: Sequence[Problem],
        reference: Reference,
        starts: Float[Tensor, "b 3 h w"],
        state: OptimizationState,
    ) -> list[list[str]]:
        """One list per problem, empty where nothing is odd."""
        away, unlike = preserved_distance(starts, reference), self._unlike(problems, reference)
        found: list[list[str]] = []
        for i, problem in enumerate(problems):
            own = unlike[i]
            if problem.load is not None and away[i] > MAX_START_RMS:
                own.append(f"the start is far from the original: RMS {away[i]:.2f} where it should stay")
            drawn = problem.prompt_check if self.generator.can_generate else None
            if drawn is not None and (called := self._called(drawn)) != drawn[1]:
                labels = self.classifier.labels
                names = "nothing: its logits are not finite" if called is None else f"a {labels[called]}"
                own.append(f"the classifier calls the generator's '{drawn[0]}' {names}")
            own += (
                [] if problem.prompt_check is None else self._undrawn(self.classifier.labels[problem.prompt_check[1]])
            )
            found.append([*own, *optimization_warnings(state, i)])
        return found

    @torch.no_grad()
    def _unlike(self, problems: Sequence[Problem], reference: Reference) -> list[list[str]]:
        """Of each problem whose image is said to show a class, what is predicted instead, if anything is."""
        found: list[list[str]] = [[] for _ in problems]
        rows = [i for i, problem in enumerate(problems) if problem.load is not None and problem.label_index is not None]
        if not rows:
            return found
        shares = self.classifier(reference.original[rows]).logits.float().softmax(dim=1)
        for i, share in zip(rows, shares, strict=True):
            shows, predicted, labels = problems[i].label_index, int(share.argmax()), self.classifier.labels
            if shows is not None and predicted != shows and share.isfinite().all():
                told = f"{labels[predicted]} ({share[predicted]:.1%}), not {labels[shows]} ({share[shows]:.1%})"
                found[i].append(f"the classifier predicts {told}, in the original image: check labels and preparation")
        return found

    def _undrawn(self, name: str) -> list[str]:
        """A warning if a class is none of the few that the generator knows."""
        known = self.generator.known_classes
        if known is None or name.lower() in known:
            return []
        return [
            f"the generator draws {len(known)} classes alone, {', '.join(known)}, and '{name}' is none of them; "
            f"domain=imagenet chooses one that draws anything"
        ]

    def _called(self, claim: tuple[str, int]) -> int | None:
        """The predicted class of an image of the prompt, None if its logits are not finite."""
        if claim not in self._tried:
            with torch.no_grad():
                logits = self.classifier(self.generator.sample([claim[0]], [PROMPT_CHECK_SEED])).logits
            self._tried[claim] = int(logits[0].argmax()) if logits.isfinite().all() else None
        return self._tried[claim]


def preserved_distance(images: Float[Tensor, "b 3 h w"], reference: Reference) -> list[float]:
    """Root mean square difference from the originals outside the editable region; 0 where all of it is."""
    kept = 1 - reference.mask
    squares = (kept * (images - reference.original).square()).mean(dim=1, keepdim=True).flatten(1).sum(dim=1)
    values: list[float] = (squares / kept.flatten(1).sum(dim=1).clamp(min=1e-12)).sqrt().tolist()
    return values


def optimization_warnings(state: OptimizationState, i: int) -> list[str]:
    """Whether sample i's descent did anything, and whether it was done when it ended."""
    total = [evaluation["total"][i] for evaluation in state.history]
    if len(total) < 2:
        return []
    best, last = int(state.best_step[i]), len(total) - 1
    if best == 0:
        return ["no step improved on the start"]
    if total[0] - total[best] < MIN_RELATIVE_DECREASE * abs(total[0]):
        return [f"the objective hardly moved: {total[0]:.3g} to {total[best]:.3g}"]
    sure = "class_log_prob" in state.history[best] and state.history[best]["class_log_prob"][i] <= -math.log(
        HIGH_CONFIDENCE
    )
    return [f"the last of {last} steps was the best: more of them may help"] if best == last and not sure else []
