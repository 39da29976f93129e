"""What an image is asked for: one value per sample, lower is better."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from runner.types import Classifier, Scene, Term


def class_log_prob(classifier: Classifier, targets: Int[Tensor, " b"]) -> Term:
    """−log p_f(y|x), averaged over a scene's views (DiG-IN, Eq. 5)."""

    def term(scene: Scene) -> Float[Tensor, " b"]:
        n, views = scene.views.shape[:2]
        log_prob = F.log_softmax(classifier(scene.views.flatten(0, 1)).logits.float(), dim=-1).view(n, views, -1)
        return -log_prob[range(n), :, targets].mean(dim=1)

    return term
