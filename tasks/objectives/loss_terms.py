"""Loss terms of classifiers: one value per sample, lower is better. Each is a mean over a scene's views."""

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


def apply_to_views(
    scene: Scene, function: Callable[[Tensor], Tensor], size: int | None = None
) -> Float[Tensor, "b n k"]:
    """A function (b n, 3, s, s) -> (b n, k) applied to all views. size: of the views, None for the scene's."""
    views = scene.views if size is None else scene.views_at(size)
    return function(views.flatten(0, 1)).unflatten(0, views.shape[:2])


def class_log_prob(classifier: Classifier, targets: Int[Tensor, " b"]) -> Term:
    """−log p_f(y|x) (DiG-IN, Eq. 5)."""

    def term(scene: Scene) -> Float[Tensor, " b"]:
        log_prob = F.log_softmax(apply_to_views(scene, lambda x: classifier(x).logits), dim=-1)
        return -log_prob[range(len(log_prob)), :, targets].mean(dim=1)

    return term


def confidence_gap(
    mode: str, classifier: Classifier, second: Classifier, targets: Int[Tensor, " b"], signs: Float[Tensor, " b"],
    margin_saturation: float,
) -> Term:  # fmt: skip
    """−s (c_f(y|x) − c_g(y|x)) of classifier f and the second classifier g (DiG-IN, Eq. 3): f should be more confident
    of class y than g where s = 1, less where s = −1. Both see the same regions of the image, each at its own size.

    mode: c is the `confidence`, its logarithm (`log_confidence`) or the `margin` of the logit over the best other
    class. A margin is unbounded, and one classifier's could outweigh the other's: it is clamped at `margin_saturation`
    in the required direction (Carlini & Wagner, 2017). Raises UserError for another mode.
    """
    if mode not in CONFIDENCE_MEASURES:
        raise UserError(f"task.mode={mode}: allowed are {', '.join(CONFIDENCE_MEASURES)}")
    measure = CONFIDENCE_MEASURES[mode]

    def term(scene: Scene) -> Float[Tensor, " b"]:
        s = signs.to(scene.image)[:, None]
        logits_f = apply_to_views(scene, lambda x: classifier(x).logits, classifier.size)
        gap_f = measure(s, logits_f, targets, margin_saturation)
        logits_g = apply_to_views(scene, lambda x: second(x).logits, second.size)
        gap_g = measure(-s, logits_g, targets, margin_saturation)
        return -(gap_f + gap_g).mean(dim=1)

    return term


# A classifier's part of the gap (b, n): its confidence in class y from logits (b, n, k), times s (b, 1), which is 1
# where the confidence should be high and −1 where it should be low.
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
    """−log of the softmax over an image's similarities to the k texts of its sample, divided by `temperature`, at the
    target (DiG-IN, Section 5: zero-shot attributes)."""

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
    and 22). s φ_n is clamped at each sample's `saturation`."""

    def term(scene: Scene) -> Float[Tensor, " b"]:
        values = apply_to_views(scene, lambda x: per_sample_activations(classifier, x, units, scene.views.shape[1]))
        return -_saturated(signs.to(values) * values.mean(dim=(1, 2)), saturation)

    return term


def saturation_levels(
    saturation_std: float | None, before: Iterable[float], signs: Tensor, stds: Sequence[float]
) -> Tensor | None:
    """Per sample s v + saturation_std · std, at which s v is clamped. before: the values v of the originals, which are
    only computed if needed; None without a limit."""
    return None if saturation_std is None else signs * torch.tensor(list(before)) + saturation_std * torch.tensor(stds)


def _saturated(values: Float[Tensor, " b"], saturation: Float[Tensor, " b"] | None) -> Float[Tensor, " b"]:
    return values if saturation is None else values.minimum(saturation.to(values))


def npca_contribution(
    classifier: Classifier, components: Sequence[tuple[Components, int]], signs: Float[Tensor, " b"],
    saturation: Float[Tensor, " b"] | None = None,
) -> Term:  # fmt: skip
    """−s α_l(x): the contribution of each sample's own component is raised where s = 1, lowered where s = −1
    (DiG-IN, App. G). s α_l is clamped at each sample's `saturation`."""

    def term(scene: Scene) -> Float[Tensor, " b"]:
        features = apply_to_views(scene, lambda x: _features(classifier(x)))
        values = [c.contributions(features[i])[:, index].mean() for i, (c, index) in enumerate(components)]
        return -_saturated(signs.to(features) * torch.stack(values), saturation)

    return term


def _features(response: Response) -> Tensor:
    assert response.features is not None
    return response.features
