"""What a unit of a classifier really prefers, by rendering: one factor of the planted world is varied at a time."""

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
NUM_SCENES = 48  # renders whose factors are varied
CLEAR_RATIO = 2.0  # times the other, of what a unit hangs on beyond doubt


@dataclass(frozen=True)
class Preference:
    """factor: the one that explains most of a unit's variance; value: the one of it that excites the unit most;
    explained_variance: the variance along each factor, as a share of the sum over the factors."""

    factor: str
    value: str
    explained_variance: dict[str, float]


@torch.no_grad()
def factor_activations(classifier: ImageClassifier, module: str) -> dict[str, Float[Tensor, "n v u"]]:
    """Per factor the activations of a module's units in the same scenes with each of the factor's values."""
    scenes = planted.sample_scenes(NUM_SCENES, planted.SPLIT_SEEDS["validation"])
    found = {}
    for factor, (field, values) in FACTORS.items():
        columns = []
        for i, value in enumerate(values):
            varied = scenes.with_factors(**{field: planted.ABSENT if value == "none" else i})
            columns.append(pooled_outputs(classifier, planted.render(varied).image, [module])[module].cpu())
        found[factor] = torch.stack(columns, dim=1)
    return found


@cache
def unit_preferences(classifier: ImageClassifier, module: str = FEATURES) -> list[Preference]:
    """Of every unit of a module. A factor explains the variance over its values, averaged over the scenes."""
    found = factor_activations(classifier, module)
    variance = {factor: values.var(dim=1).mean(dim=0) for factor, values in found.items()}
    total = torch.stack(list(variance.values())).sum(dim=0).clamp(min=1e-12)
    result = []
    for unit in range(len(total)):
        explained = {factor: (v[unit] / total[unit]).item() for factor, v in variance.items()}
        factor = max(explained, key=lambda name: explained[name])
        best = int(found[factor][:, :, unit].mean(dim=0).argmax())
        result.append(Preference(factor, FACTORS[factor][1][best], explained))
    return result


def unit_preference(classifier: ImageClassifier, unit: Unit) -> Preference:
    """Of one unit."""
    return unit_preferences(classifier, unit.module)[unit.index]


@dataclass(frozen=True)
class UnitRole:
    """What lowers a unit in pictures of a class: object_drop: its drop when the object becomes its pair's other class;
    context_drop: when the most exciting background or prop, `value` of `factor`, gives way to others; activation:
    before. The unit is spurious for the class where the context counts for more than the object, whichever way that
    counts, core where the object counts for more and speaks for the class, and neither elsewhere; clearly so where it
    counts for `CLEAR_RATIO` times as much."""

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
    """Of every unit of a module, for one class."""
    partners = dict(planted.PAIRS) | {b: a for a, b in planted.PAIRS}
    scenes = planted.sample_scenes(NUM_SCENES, planted.SPLIT_SEEDS["validation"]).with_factors(
        label=planted.CLASSES.index(label)
    )
    contexts = {}
    for factor in ("background", "prop"):
        field, values = FACTORS[factor]
        varied = [scenes.with_factors(**{field: planted.ABSENT if v == "none" else i}) for i, v in enumerate(values)]
        contexts[factor] = torch.stack([_mean(classifier, s, module) for s in varied])
    found = []
    for unit in range(len(contexts["prop"][0])):
        drops = {f: _drop(means[:, unit]) for f, means in contexts.items()}
        factor = max(drops, key=lambda name: drops[name][0])
        context, best = drops[factor]
        exciting = scenes.with_factors(
            **{FACTORS[factor][0]: planted.ABSENT if FACTORS[factor][1][best] == "none" else best}
        )
        partner = exciting.with_factors(label=planted.CLASSES.index(partners[label]))
        own, other = (_mean(classifier, s, module)[unit].item() for s in (exciting, partner))
        found.append(UnitRole(own - other, context, factor, FACTORS[factor][1][best], own))
    return found


def _drop(means: Float[Tensor, " v"]) -> tuple[float, int]:
    """How far the highest of several values lies above the mean of the others, and its position."""
    best = int(means.argmax())
    others = torch.cat([means[:best], means[best + 1 :]])
    return (means[best] - others.mean()).item(), best


@torch.no_grad()
def _mean(classifier: ImageClassifier, scenes: planted.SceneFactors, module: str) -> Float[Tensor, " u"]:
    """Mean activations of a module's units over renders."""
    return pooled_outputs(classifier, planted.render(scenes).image, [module])[module].cpu().mean(dim=0)
