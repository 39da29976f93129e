"""Ground truth about units of a classifier, by rendering: one factor of the planted world is varied at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.tasks.units.addressing import FEATURES, Unit, pooled_outputs

FACTORS = {
    "class": ("label", planted.CLASSES), "background": ("background", planted.BACKGROUNDS),
    "prop": ("prop", (*planted.PROPS, "none")), "hue": ("hue", planted.HUES),
}  # fmt: skip
NUM_SCENES = 48  # rendered scenes whose factors are varied
CLEAR_RATIO = 2.0  # of the larger to the smaller drop, for an unambiguous role


@dataclass(frozen=True)
class Preference:
    """factor: which explains most of a unit's variance; value: of that factor, with the highest activation;
    explained_variance: the variance along each factor, as a share of the sum over the factors."""

    factor: str
    value: str
    explained_variance: dict[str, float]


@torch.no_grad()
def factor_activations(classifier: ImageClassifier, module: str) -> dict[str, Float[Tensor, "n v u"]]:
    """Per factor the activations of a module's units in the same scenes with each value of the factor."""
    scenes = planted.sample_scenes(NUM_SCENES, planted.SPLIT_SEEDS["validation"])
    activations = {}
    for factor, (field, values) in FACTORS.items():
        columns = []
        for i, value in enumerate(values):
            varied = scenes.with_factors(**{field: planted.ABSENT if value == "none" else i})
            columns.append(pooled_outputs(classifier, planted.render(varied).image, [module])[module].cpu())
        activations[factor] = torch.stack(columns, dim=1)
    return activations


@cache
def unit_preferences(classifier: ImageClassifier, module: str = FEATURES) -> list[Preference]:
    """The preference of every unit of a module. A factor explains the variance over its values, mean over the
    scenes."""
    activations = factor_activations(classifier, module)
    variance = {factor: values.var(dim=1).mean(dim=0) for factor, values in activations.items()}
    total = torch.stack(list(variance.values())).sum(dim=0).clamp(min=1e-12)
    preferences = []
    for unit in range(len(total)):
        explained = {factor: (v[unit] / total[unit]).item() for factor, v in variance.items()}
        factor = max(explained, key=lambda name: explained[name])
        best = int(activations[factor][:, :, unit].mean(dim=0).argmax())
        preferences.append(Preference(factor, FACTORS[factor][1][best], explained))
    return preferences


def unit_preference(classifier: ImageClassifier, unit: Unit) -> Preference:
    """The preference of one unit."""
    return unit_preferences(classifier, unit.module)[unit.index]


@dataclass(frozen=True)
class UnitRole:
    """What lowers a unit's activation in images of a class. object_drop: the drop if the object becomes the other class
    of its pair; context_drop: the drop if the background or prop with the highest activation, `value` of `factor`, is
    replaced by others; activation: before. The unit is spurious for the class if the context drop exceeds the absolute
    object drop, core if the object drop exceeds the context drop, and neither otherwise; the role is clear if the
    larger drop is at least `CLEAR_RATIO` times the smaller."""

    object_drop: float
    context_drop: float
    factor: str
    value: str
    activation: float

    @property
    def is_spurious(self) -> bool:
        return self.context_drop > abs(self.object_drop)

    @property
    def is_core(self) -> bool:
        return self.object_drop > self.context_drop

    @property
    def is_clear(self) -> bool:
        lower, higher = sorted((abs(self.object_drop), self.context_drop))
        return higher >= CLEAR_RATIO * lower


@cache
def unit_roles(classifier: ImageClassifier, label: str, module: str = FEATURES) -> list[UnitRole]:
    """The role of every unit of a module for one class."""
    partners = dict(planted.PAIRS) | {b: a for a, b in planted.PAIRS}
    scenes = planted.sample_scenes(NUM_SCENES, planted.SPLIT_SEEDS["validation"]).with_factors(
        label=planted.CLASSES.index(label)
    )
    contexts = {}
    for factor in ("background", "prop"):
        field, values = FACTORS[factor]
        varied = [scenes.with_factors(**{field: planted.ABSENT if v == "none" else i}) for i, v in enumerate(values)]
        contexts[factor] = torch.stack([_mean(classifier, s, module) for s in varied])
    class_roles = []
    for unit in range(len(contexts["prop"][0])):
        drops = {f: _drop(means[:, unit]) for f, means in contexts.items()}
        factor = max(drops, key=lambda name: drops[name][0])
        context, best = drops[factor]
        exciting = scenes.with_factors(
            **{FACTORS[factor][0]: planted.ABSENT if FACTORS[factor][1][best] == "none" else best}
        )
        partner = exciting.with_factors(label=planted.CLASSES.index(partners[label]))
        activation, partner_activation = (_mean(classifier, s, module)[unit].item() for s in (exciting, partner))
        class_roles.append(
            UnitRole(activation - partner_activation, context, factor, FACTORS[factor][1][best], activation)
        )
    return class_roles


def _drop(means: Float[Tensor, " v"]) -> tuple[float, int]:
    """How far the highest value is above the mean of the others, and its index."""
    best = int(means.argmax())
    others = torch.cat([means[:best], means[best + 1 :]])
    return (means[best] - others.mean()).item(), best


@torch.no_grad()
def _mean(classifier: ImageClassifier, scenes: planted.SceneFactors, module: str) -> Float[Tensor, " u"]:
    """Mean activations of a module's units over renders."""
    return pooled_outputs(classifier, planted.render(scenes).image, [module])[module].cpu().mean(dim=0)
