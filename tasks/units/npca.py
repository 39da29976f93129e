"""Neural PCA: the principal components of a class's weighted features (DiG-IN, App. G)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.runner.files.text import read_text
from classifier_lens.runner.protocols import Cache, Classifier, Dataset
from classifier_lens.runner.types import Head, UserError, ensure_finite
from classifier_lens.tasks.problems.problem_checks import apply_to_training_images
from classifier_lens.tasks.prompts.target_rules import class_indices, resolve_class_name
from classifier_lens.tasks.units.activation_ranking import image_batches, load_or_compute

MIN_IMAGES = 2  # of a class: fewer have no covariance
VARIANCE_TOLERANCE = 1e-12  # of the mean squared norm of ψ_k: less is rounding in the network's float32


@dataclass(frozen=True)
class Components:
    """Components of class k: weight w_k, the mean of ψ_k = w_k ∘ φ, and unit vectors v_l in order of decreasing
    variance, with signs such that the entries of each sum to 0 or more."""

    weight: Float[Tensor, " f"]
    mean: Float[Tensor, " f"]
    vectors: Float[Tensor, "l f"]
    variance: Float[Tensor, " l"]

    def contributions(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b l"]:
        """α_l = ⟨1, v_l⟩ ⟨ψ_k(x) − mean ψ_k, v_l⟩: over all components they sum to the logit without its bias, minus
        its mean over the class."""
        weight, mean, vectors = (t.to(features) for t in (self.weight, self.mean, self.vectors))
        return vectors.sum(dim=1) * ((features * weight - mean) @ vectors.T)

    @property
    def rank(self) -> int:
        """The number of components that vary over the class's training images; α of the others is constant."""
        scale = self.mean.square().sum() + self.variance.sum()
        return int((self.variance > VARIANCE_TOLERANCE * scale).sum())

    def std(self, number: int) -> float:
        """Standard deviation of α_l over the class's training images."""
        return (self.vectors[number].sum().abs() * self.variance[number].sqrt()).item()


def class_components(classifier: Classifier, label: str, dataset: Dataset, side: int, cache: Cache) -> Components:
    """The components of a class over its images in a data set, in double precision and one pass.

    Raises UserError if the classifier returns no features, or the data set has fewer than `MIN_IMAGES` such images.
    """
    k = classifier.labels.index(label)
    weight = _head(classifier).weight[k].detach().cpu().double()
    key = ("components", classifier.fingerprint, k, label, dataset.digest, side)
    return Components(**load_or_compute(cache, key, lambda: _components(classifier, label, weight, dataset, side)))


def check_component(label: str, index: int, components: Components) -> None:
    """Raises UserError for a component beyond the rank of the class's images: it does not vary, so that any change of
    it would count as a success."""
    if index >= components.rank:
        allowed = f"0 … {components.rank - 1}" if components.rank else "none"
        raise UserError(
            f"task.components={{{label}: [{index}]}}: only {components.rank} components vary over the training images "
            f"of '{label}'; allowed are {allowed}, and more with more images (training.count, data@training=)"
        )


@torch.no_grad()
def contribution(
    classifier: Classifier, components: Components, index: int, images: Float[Tensor, "n 3 h w"]
) -> Float[Tensor, " n"]:
    """α_l of one component in images."""
    features = classifier(images).features
    assert features is not None
    return components.contributions(features.cpu())[:, index]


def _head(classifier: Classifier) -> Head:
    if classifier.head is None:
        raise UserError(
            "task.components: the classifier has no known last linear layer, from which components are computed"
        )
    return classifier.head


@torch.no_grad()
def _components(classifier: Classifier, label: str, weight: Tensor, dataset: Dataset, side: int) -> dict[str, Tensor]:
    rows = class_indices(dataset, label, classifier.labels)
    if len(rows) < MIN_IMAGES:
        raise UserError(
            f"task.components: the training data have {len(rows)} images of '{label}'; at least {MIN_IMAGES} are needed"
        )
    f = len(weight)
    total, outer = torch.zeros(f, dtype=torch.double), torch.zeros(f, f, dtype=torch.double)

    def compute(images: Tensor) -> Tensor:
        features = classifier(images).features
        assert features is not None
        return ensure_finite(features.cpu(), f"the features of '{label}'")

    for _, names, images in image_batches(dataset, side, rows):
        psi = apply_to_training_images(classifier, names, images, compute).double() * weight
        total += psi.sum(dim=0)
        outer += psi.T @ psi
    mean = total / len(rows)
    covariance = (outer - len(rows) * mean[:, None] * mean[None]) / (len(rows) - 1)
    variance, vectors = torch.linalg.eigh(covariance)
    vectors = vectors.T.flip(0)
    vectors = torch.where(vectors.sum(dim=1, keepdim=True) < 0, -vectors, vectors)
    return {
        "weight": weight, "mean": mean, "vectors": vectors.contiguous(), "variance": variance.flip(0).clamp(min=0),
    }  # fmt: skip


def parse_components(
    spec: str | Mapping[str, Sequence[int]] | None, classifier: Classifier
) -> list[tuple[str, int]]:  # fmt: skip
    """(class, component) pairs of a mapping {class name or index: [components]}, or of a JSON file with one, such as
    the published spurious components of ImageNet; None: the first component of every class.

    Raises UserError for a file that does not exist or holds no such mapping, an unknown class, a component that no
    class has, and a classifier without a known last linear layer.
    """
    if isinstance(spec, str):
        text = read_text(f"task.components={spec}", spec, "{class: [numbers]}, or a JSON file with it")
        try:
            spec = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"task.components={spec}: cannot be read ({error}); it must hold {{class: [numbers]}}"
            ) from error
    if spec is None:
        spec = {str(i): [0] for i in range(len(classifier.labels))}
    if not isinstance(spec, Mapping):
        raise UserError(
            f"task.components={spec}: allowed are {{class name or index: [numbers]}} and a JSON file with it"
        )
    width = _head(classifier).weight.shape[1]
    pairs = []
    for key, numbers in spec.items():
        if str(key).isdigit() and str(key) not in classifier.labels and int(key) < len(classifier.labels):
            label = classifier.labels[int(key)]
        else:
            label = resolve_class_name("task.components", str(key), classifier.labels)
        if not isinstance(numbers, Sequence):
            raise UserError(f"task.components={{{key}: {numbers}}}: allowed are lists of numbers, such as [{numbers}]")
        for number in numbers:
            if not (isinstance(number, int) and 0 <= number < width):
                raise UserError(f"task.components={{{key}: [{number}]}}: allowed are 0 … {width - 1}")
            pairs.append((label, number))
    return pairs
