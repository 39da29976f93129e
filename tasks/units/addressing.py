"""Units of a classifier: their addresses and activations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from classifier_lens.runner.protocols import Classifier
from classifier_lens.runner.types import UserError, ensure_finite

FEATURES = "features"  # the input of the last linear layer


@dataclass(frozen=True)
class Unit:
    """One channel of a module's output. module: a module's name; `<name>.in` for its input, `<name>#1` for its second
    call, `features` for the features before the last linear layer."""

    module: str
    index: int

    def __str__(self) -> str:
        return f"{self.module}:{self.index}"


def parse_unit(address: str | int) -> Unit:
    """`7`, `features:7`, `layer4:3` or `head.in:565` as a unit. Raises UserError for anything else."""
    match = re.fullmatch(r"(?:(.+):)?(\d+)", str(address))
    if match is None:
        raise UserError(f"task.units={address}: allowed are a number, or <module>:<number> such as head.in:565")
    return Unit(match[1] or FEATURES, int(match[2]))


def pooled_outputs(
    classifier: Classifier, images: Float[Tensor, "b 3 h w"], modules: Sequence[str]
) -> dict[str, Float[Tensor, "b c"]]:
    """One value per channel of each module: the mean over the places of a feature map or over tokens.

    Raises UserError for a module that the network does not have, and for `features` if it returns none.
    """
    response, traced = classifier.forward_with_activations(images, [name for name in modules if name != FEATURES])
    if FEATURES in modules:
        if response.features is None:
            raise UserError(
                "task.units: the classifier returns no features; give a module and a number, such as layer4:3"
            )
        traced[FEATURES] = response.features
    return {name: _pooled(traced[name]).float() for name in modules}


def _pooled(output: Tensor) -> Float[Tensor, "b c"]:
    """Feature maps "b c y x" and tokens "b l c", averaged over their places."""
    if output.ndim == 4:
        return output.mean(dim=(2, 3))
    return output.mean(dim=1) if output.ndim == 3 else output


def per_sample_activations(
    classifier: Classifier, images: Float[Tensor, "bn 3 h w"], units: Sequence[Unit], views: int
) -> Float[Tensor, "bn 1"]:
    """The activation of each sample's own unit. views: per sample; sample i has the images i * views … (i + 1) * views
    - 1."""
    values = pooled_outputs(classifier, images, sorted({unit.module for unit in units}))
    per_sample = [values[unit.module][i * views : (i + 1) * views, unit.index] for i, unit in enumerate(units)]
    return torch.cat(per_sample)[:, None]


@torch.no_grad()
def activation(classifier: Classifier, images: Float[Tensor, "n 3 h w"], unit: Unit) -> Float[Tensor, " n"]:
    """One unit's activation in images. Raises NonFiniteError."""
    values = pooled_outputs(classifier, images, [unit.module])[unit.module][:, unit.index].cpu()
    return ensure_finite(values, f"the activation of {unit}")


def check_units(classifier: Classifier, units: Sequence[Unit]) -> None:
    """Raise UserError for a module or an index that does not exist."""
    image = torch.zeros(1, 3, classifier.size, classifier.size)
    with torch.no_grad():
        widths = {
            name: v.shape[1] for name, v in pooled_outputs(classifier, image, sorted({u.module for u in units})).items()
        }
    for unit in units:
        if unit.index >= widths[unit.module]:
            raise UserError(f"task.units={unit}: allowed are {unit.module}:0 … {unit.module}:{widths[unit.module] - 1}")


@dataclass(frozen=True)
class Ranking:
    """Activations of all units of a module over a data set.

    top_values, top_indices: the highest activations and the positions of their images, highest first; mean, std: over
    all images; class_means: the mean of φ_j over the images predicted as c; 0 if there are none, and for modules other
    than the features."""

    top_values: Float[Tensor, "k u"]
    top_indices: Int[Tensor, "k u"]
    mean: Float[Tensor, " u"]
    std: Float[Tensor, " u"]
    class_means: Float[Tensor, "c u"]
