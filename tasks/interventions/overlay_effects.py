"""Effects of overlays on the log-odds of all classes, from real images with and without the overlay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.digests import hash_example, hash_values
from classifier_lens.data.images import center_crop_resize
from classifier_lens.runner.protocols import Classifier, Dataset
from classifier_lens.runner.types import UnreadableImageError, UserError, ensure_finite, matching_names
from classifier_lens.tasks.interventions.effects import Effect, holm, mean_change

BATCH_SIZE = 64  # images per call of the classifier
MIN_DOUBT = 1e-12  # smallest -log p, which bounds the log-odds to ±28


@dataclass(frozen=True)
class Outputs:
    """A classifier's outputs for images: log-odds and probabilities of all classes, in double precision."""

    log_odds: Float[Tensor, "n k"]
    probabilities: Float[Tensor, "n k"]

    def accuracy(self, labels: Sequence[int | None]) -> float | None:
        """The share of images that are predicted as their class; None if no class is known."""
        hits = [
            int(p.argmax()) == label for p, label in zip(self.probabilities, labels, strict=True) if label is not None
        ]
        return sum(hits) / len(hits) if hits else None


@dataclass(frozen=True)
class OverlayEffect:
    """The effect of an overlay on a class. label: index of the class; rank: among all classes, 1 for the largest
    effect; probability_change: mean change of the probability."""

    label: int
    rank: int
    effect: Effect
    probability_change: float


@torch.no_grad()
def outputs(classifier: Classifier, images: Float[Tensor, "n 3 h w"]) -> Outputs:
    """The outputs for images. The log-odds of a class are log p - log(1 - p)."""
    logits = torch.cat([classifier(part).logits.double().cpu() for part in images.split(BATCH_SIZE)])
    logits = ensure_finite(logits, "the classifier's logits")
    log_p = logits.log_softmax(dim=1)
    return Outputs(log_p - torch.log(-torch.expm1(log_p.clamp(max=-MIN_DOUBT))), log_p.exp())


def overlay_effects(plain: Outputs, overlaid: Outputs) -> list[OverlayEffect]:
    """The effects of an overlay on all classes, the largest one first, with p-values corrected for the number of
    classes. plain, overlaid: outputs for the same images without and with it."""
    changes = (overlaid.log_odds - plain.log_odds).numpy()
    effects = holm([mean_change(column) for column in changes.T])
    probability_changes = (overlaid.probabilities - plain.probabilities).mean(dim=0).tolist()
    order = sorted(range(len(effects)), key=lambda k: -effects[k].value)
    return [OverlayEffect(k, rank, effects[k], probability_changes[k]) for rank, k in enumerate(order, start=1)]


class PlainImages:
    """The first `count` images of a data set at the classifier's size, without an overlay, and the outputs for them.

    labels: indices of their classes, None for classes that the classifier does not have; digest: of all images. Raises
    UserError for fewer than two images, which have no interval."""

    def __init__(self, dataset: Dataset, classifier: Classifier, count: int) -> None:
        pixels: list[Tensor] = []
        self.labels: list[int | None] = []
        digests = []
        for i in range(len(dataset)):
            if len(pixels) == count:
                break
            try:
                example = dataset[i]
                pixels.append(center_crop_resize(example.image, classifier.size))
            except UnreadableImageError as error:
                print(f"image skipped: {error}", flush=True)
                continue
            digests.append(hash_example(example))
            known = matching_names(example.label, classifier.labels)
            self.labels.append(classifier.labels.index(known[0]) if len(known) == 1 else None)
        if len(pixels) < 2:
            raise UserError(
                f"data: {len(pixels)} images; overlays need two or more for an interval, or task.overlays={{}} for none"
            )
        self.pixels, self.digest = torch.stack(pixels), hash_values(*digests)
        self.outputs = outputs(classifier, self.pixels)
