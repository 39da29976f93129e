"""Universal visual counterfactual explanations (DiG-IN, Section 5, Algorithm 2): what would have to change in a
picture for a classifier to call it something else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.folder import square
from runner.types import Anchor, Captioner, Classifier, Dataset, Edit, Example, Objective, Problem, article
from tasks.distances import latent_distance, pixel_distance
from tasks.targets import Choice, known_label, targets
from tasks.terms import class_log_prob


class Uvce:
    """target: a rule of `tasks.targets` or a class name; weights: of the objective's terms (w_VAE = 25, w_PX = 250
    in D.1.5); baseline: what answers instead of the method, see `runner.baselines`."""

    def __init__(self, target: str, baseline: str, weights: dict[str, float], captioner: Captioner) -> None:
        self.target, self.baseline, self.weights, self.captioner = target, baseline, weights, captioner

    def problems(
        self, dataset: Dataset, classifier: Classifier, resolution: int, seed: int, limit: int | None
    ) -> tuple[list[Problem], int]:
        """One problem per picture and target, in the data set's order; only those within the limit are made."""
        per_example = len(classifier.labels) - 1 if self.target == "all" else 1
        total = len(dataset) * per_example
        chosen = islice(self._problems(dataset, classifier, resolution, seed), limit)
        return list(chosen), total

    def _problems(
        self, dataset: Dataset, classifier: Classifier, resolution: int, seed: int
    ) -> Iterator[Problem]:  # fmt: skip
        for i in range(len(dataset)):
            example = dataset[i]
            source = known_label("data.label", example.label, classifier.labels)
            own_seed = seed * 1_000_003 + i
            choice = Choice(replace(example, label=source), dataset, classifier, own_seed)
            for target in targets(self.target, choice):
                yield Problem(
                    name=f"{example.name}-{re.sub(r'[^a-z0-9]+', '-', target.lower())}", seed=own_seed,
                    edit=replace_words(self.captioner(example), example, target),
                    image=square(example.image, resolution),
                    source=classifier.labels.index(source), target=classifier.labels.index(target),
                )  # fmt: skip

    def objective(self, problems: Sequence[Problem], anchor: Anchor, classifier: Classifier) -> Objective:
        """−log p_f(y|x) and the two distances of Eq. 4."""
        wanted = torch.tensor([p.target for p in problems])
        terms = {
            "class_log_prob": class_log_prob(classifier, wanted),
            "latent_distance": latent_distance(anchor),
            "pixel_distance": pixel_distance(anchor),
        }
        return {name: (self.weights[name], term) for name, term in terms.items()}

    def measure(
        self, problem: Problem, original: Float[Tensor, "3 h w"], best: Float[Tensor, "3 h w"], classifier: Classifier
    ) -> dict[str, Any]:
        """Classes and confidences before and after, of the source, the target and whatever is predicted."""
        with torch.no_grad():
            before, after = classifier(torch.stack([original, best])).logits.float().softmax(dim=-1).cpu()
        names = classifier.labels
        classes = dict.fromkeys([problem.source, problem.target, int(before.argmax()), int(after.argmax())])
        return {
            "success": int(after.argmax()) == problem.target,
            "source": names[problem.source],
            "target": names[problem.target],
            "predicted_before": names[int(before.argmax())],
            "predicted_after": names[int(after.argmax())],
            "confidence_before": {names[c]: before[c].item() for c in classes},
            "confidence_after": {names[c]: after[c].item() for c in classes},
        }


def replace_words(caption: str, example: Example, target: str) -> Edit:
    """The caption with the target's name in the place of the class's; an article right before it follows the name."""
    pattern = re.compile(rf"\b(an? )?{re.escape(example.label)}\b", flags=re.IGNORECASE)
    changed = pattern.sub(lambda found: f"{article(target)} {target}" if found[1] else target, caption, count=1)
    return Edit(caption, changed, example.label, target)
