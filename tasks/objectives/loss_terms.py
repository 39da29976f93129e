"""What an image is asked for: one value per sample, lower is better.

Each term is the mean over a scene's views, which are what the classifiers are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from classifier_lens.runner.protocols import Classifier, Embedder
from classifier_lens.runner.types import Response, Scene, Term, UserError
from classifier_lens.tasks.units.addressing import Unit, per_sample_activations
from classifier_lens.tasks.units.npca import Components


def apply_to_views(scene: Scene, ask: Callable[[Tensor], Tensor], size: int | None = None) -> Float[Tensor, "b n k"]:
    """What `ask` says of every view, (b n, k) folded back to (b, n, k); size: of the views, None for the scene's."""
    views = scene.views if size is None else scene.views_at(size)
    return ask(views.flatten(0, 1)).unflatten(0, views.shape[:2])


def class_log_prob(classifier: Classifier, targets: Int[Tensor, " b"]) -> Term:
    """−log p_f(y|x) (DiG-IN, Eq. 5)."""

    def term(scene: Scene) -> Float[Tensor, " b"]:
        log_prob = F.log_softmax(apply_to_views(scene, lambda x: classifier(x).logits), dim=-1)
        return -log_prob[range(len(log_prob)), :, targets].mean(dim=1)

    return term


def confidence_gap(
    mode: str, classifier: Classifier, rival: Classifier, targets: Int[Tensor, " b"], signs: Float[Tensor, " b"],
    margin_saturation: float,
) -> Term:  # fmt: skip
    """−s (c_f(y|x) − c_g(y|x)): what classifier f sees more of class y than rival g where s = 1, and the other way
    round where s = −1 (DiG-IN, Eq. 3). Both see the same regions of the image, each at its own size.

    mode: c is the `confidence`, its logarithm (`log_confidence`) or the logit's `margin` over the best other class. A
    margin has no end: beyond `margin_saturation` on the side that is wanted it counts no more (Carlini & Wagner, 2017),
    or one classifier's would outweigh the other's. Raises UserError for another mode."""
    if mode not in CONFIDENCE_MEASURES:
        raise UserError(f"task.mode={mode}: allowed are {', '.join(CONFIDENCE_MEASURES)}")
    sure = CONFIDENCE_MEASURES[mode]

    def term(scene: Scene) -> Float[Tensor, " b"]:
        s = signs.to(scene.image)[:, None]
        ours = sure(
            s, apply_to_views(scene, lambda x: classifier(x).logits, classifier.size), targets, margin_saturation
        )
        theirs = sure(-s, apply_to_views(scene, lambda x: rival(x).logits, rival.size), targets, margin_saturation)
        return -(ours + theirs).mean(dim=1)

    return term


# What one classifier adds to the gap: its certainty of class y (b,) from logits (b, n, k), times s (b, 1), which is 1
# where it should be certain and −1 where it should not.
def _confidence(s: Tensor, logits: Tensor, targets: Tensor, margin_saturation: float) -> Tensor:
    return s * logits.softmax(dim=-1)[range(len(logits)), :, targets]


def _log_confidence(s: Tensor, logits: Tensor, targets: Tensor, margin_saturation: float) -> Tensor:
    return s * logits.log_softmax(dim=-1)[range(len(logits)), :, targets]


def _margin(s: Tensor, logits: Tensor, targets: Tensor, margin_saturation: float) -> Tensor:
    """Logit of y minus the highest other one."""
    rows = range(len(logits))
    others = logits.clone()
    others[rows, :, targets] = -torch.inf
    return (s * (logits[rows, :, targets] - others.amax(dim=-1))).clamp(max=margin_saturation)


CONFIDENCE_MEASURES = {"confidence": _confidence, "log_confidence": _log_confidence, "margin": _margin}


def text_log_prob(
    clip: Embedder, texts: Float[Tensor, "b k d"], targets: Int[Tensor, " b"], temperature: float
) -> Term:
    """−log of the softmax over a picture's similarities to its own k texts, divided by `temperature`, at the target
    (DiG-IN, Section 5: zero-shot attributes)."""

    def term(scene: Scene) -> Float[Tensor, " b"]:
        similarity = apply_to_views(scene, clip.embed_images) @ texts.transpose(1, 2)
        log_prob = (similarity / temperature).log_softmax(dim=-1)
        return -log_prob[range(len(log_prob)), :, targets].mean(dim=1)

    return term


def unit_activation(
    classifier: Classifier,
    units: Sequence[Unit],
    signs: Float[Tensor, " b"],
    saturation: Float[Tensor, " b"] | None = None,
) -> Term:
    """−s φ_n(x): the activation of each sample's own unit is raised where s = 1, lowered where s = −1 (DiG-IN, Eq. 6
    and 22). Where s φ_n is beyond a sample's `saturation`, it counts no more."""

    def term(scene: Scene) -> Float[Tensor, " b"]:
        values = apply_to_views(scene, lambda x: per_sample_activations(classifier, x, units, scene.views.shape[1]))
        return -_saturated(signs.to(values) * values.mean(dim=(1, 2)), saturation)

    return term


def saturation_levels(
    saturation_std: float | None, before: Iterable[float], signs: Tensor, stds: Sequence[float]
) -> Tensor | None:
    """Per sample s v + saturation_std · std, beyond which a change of the value v counts no more; None for no end, and
    then no v is asked for."""
    return None if saturation_std is None else signs * torch.tensor(list(before)) + saturation_std * torch.tensor(stds)


def _saturated(values: Float[Tensor, " b"], saturation: Float[Tensor, " b"] | None) -> Float[Tensor, " b"]:
    return values if saturation is None else values.minimum(saturation.to(values))


def npca_contribution(
    classifier: Classifier, components: Sequence[tuple[Components, int]], signs: Float[Tensor, " b"],
    saturation: Float[Tensor, " b"] | None = None,
) -> Term:  # fmt: skip
    """−s α_l(x): the contribution of each sample's own component is raised where s = 1, lowered where s = −1
    (DiG-IN, App. G). Where s α_l is beyond a sample's `saturation`, it counts no more."""

    def term(scene: Scene) -> Float[Tensor, " b"]:
        features = apply_to_views(scene, lambda x: _features(classifier(x)))
        values = [c.contributions(features[i])[:, index].mean() for i, (c, index) in enumerate(components)]
        return -_saturated(signs.to(features) * torch.stack(values), saturation)

    return term


def _features(response: Response) -> Tensor:
    assert response.features is not None
    return response.features
