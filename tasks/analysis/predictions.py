"""What a classifier predicts for the saved images of a result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.result_schema import ResultImages, StageFields
from classifier_lens.runner.types import ensure_finite


@torch.no_grad()
def probabilities(classifier: Classifier, images: Sequence[Float[Tensor, "3 h w"]]) -> Float[Tensor, "n k"]:
    """Softmax over the classes for each image. Raises NonFiniteError."""
    p = classifier(torch.stack(list(images))).logits.float().softmax(dim=-1).cpu()
    return ensure_finite(p, "the classifier's confidences")


def measure_confidences(classifier: Classifier, images: ResultImages, classes: Sequence[int]) -> StageFields:
    """Predictions before optimization, at its start and after it, with the confidences in `classes` and in every class
    that is predicted at one of the three stages."""
    p = probabilities(classifier, images.stages)
    predicted = p.argmax(dim=1).tolist()
    return confidences_by_stage(p, classifier.labels, list(dict.fromkeys([*classes, *predicted])))


def confidences_by_stage(p: Float[Tensor, "3 k"], names: Sequence[str], classes: Sequence[int]) -> StageFields:
    """The same of probabilities that are given, a row per stage. names: of all classes."""
    before, start, after = ({names[c]: row[c].item() for c in classes} for row in p)
    predicted_before, predicted_start, predicted_after = (names[int(row.argmax())] for row in p)
    return {
        "predicted_before": predicted_before, "predicted_start": predicted_start, "predicted_after": predicted_after,
        "confidence_before": before, "confidence_start": start, "confidence_after": after,
    }  # fmt: skip
