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
        self._predictions: dict[str, int | None] = {}

    def __call__(
        self,
        problems: Sequence[Problem],
        reference: Reference,
        starts: Float[Tensor, "b 3 h w"],
        state: OptimizationState,
    ) -> list[list[str]]:
        """The warnings of each problem."""
        distances, warnings = preserved_distance(starts, reference), self._mislabeled(problems, reference)
        for i, problem in enumerate(problems):
            if problem.load is not None and distances[i] > MAX_START_RMS:
                warnings[i].append(
                    f"the start is far from the original: RMS {distances[i]:.2f} in the preserved region"
                )
            if problem.prompt_check is not None:
                warnings[i] += self._unknown_class(*problem.prompt_check)
            warnings[i] += optimization_warnings(state, i)
        return warnings

    @torch.no_grad()
    def _mislabeled(self, problems: Sequence[Problem], reference: Reference) -> list[list[str]]:
        """Per problem a warning if its given image is predicted as another class than its label."""
        warnings: list[list[str]] = [[] for _ in problems]
        rows = [i for i, problem in enumerate(problems) if problem.load is not None and problem.label_index is not None]
        if not rows:
            return warnings
        probabilities = self.classifier(reference.original[rows]).logits.float().softmax(dim=1)
        names = self.classifier.labels
        for i, p in zip(rows, probabilities, strict=True):
            label, predicted = problems[i].label_index, int(p.argmax())
            if label is not None and predicted != label and p.isfinite().all():
                warnings[i].append(
                    f"the original is predicted as {names[predicted]} ({p[predicted]:.1%}), not as its label "
                    f"{names[label]} ({p[label]:.1%}): check labels and preprocessing"
                )
        return warnings

    def _unknown_class(self, prompt: str, label: int) -> list[str]:
        """Warnings if the generator cannot generate the class of a prompt, or if its image of the prompt is predicted
        as another class."""
        names, known = self.classifier.labels, self.generator.known_classes
        warnings = []
        if self.generator.can_generate and (predicted := self._prediction(prompt)) != label:
            result = "gives logits that are not finite" if predicted is None else f"is predicted as {names[predicted]}"
            warnings.append(f"the generator's image of '{prompt}' {result}")
        if known is not None and names[label].lower() not in known:
            warnings.append(
                f"the generator was trained on {len(known)} classes alone, {', '.join(known)}; '{names[label]}' is not "
                f"among them: choose a generator that knows it, such as domain=imagenet"
            )
        return warnings

    def _prediction(self, prompt: str) -> int | None:
        """The predicted class of an image of the prompt, None if its logits are not finite."""
        if prompt not in self._predictions:
            with torch.no_grad():
                logits = self.classifier(self.generator.sample([prompt], [PROMPT_CHECK_SEED])).logits
            self._predictions[prompt] = int(logits[0].argmax()) if logits.isfinite().all() else None
        return self._predictions[prompt]


def preserved_distance(images: Float[Tensor, "b 3 h w"], reference: Reference) -> list[float]:
    """Root mean square difference from the originals outside the editable region; 0 where all of it is."""
    preserved = 1 - reference.mask
    squares = (preserved * (images - reference.original).square()).mean(dim=1, keepdim=True).flatten(1).sum(dim=1)
    values: list[float] = (squares / preserved.flatten(1).sum(dim=1).clamp(min=1e-12)).sqrt().tolist()
    return values


def optimization_warnings(state: OptimizationState, i: int) -> list[str]:
    """Warnings if the optimization of sample i improved hardly or was not finished."""
    total = [evaluation["total"][i] for evaluation in state.history]
    if len(total) < 2:
        return []
    best, last = int(state.best_step[i]), len(total) - 1
    if best == 0:
        return ["no step is better than the start"]
    if total[0] - total[best] < MIN_RELATIVE_DECREASE * abs(total[0]):
        return [f"the objective hardly moved: {total[0]:.3g} to {total[best]:.3g}"]
    log_prob = state.history[best].get("class_log_prob")
    is_confident = log_prob is not None and log_prob[i] <= -math.log(HIGH_CONFIDENCE)
    unfinished = best == last and not is_confident
    return [f"the best step is the last of {last}: more steps may improve the result"] if unfinished else []
