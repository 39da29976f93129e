"""Ranking of units over a data set: their most activating images, and the moments of their activations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from classifier_lens.data.images import center_crop_resize
from classifier_lens.runner.configuration.value_ranges import UnitAddresses
from classifier_lens.runner.logging.loop_progress import track_progress
from classifier_lens.runner.protocols import Cache, Classifier, Dataset
from classifier_lens.runner.types import UserError, ensure_finite
from classifier_lens.tasks.analysis.predictions import probabilities
from classifier_lens.tasks.problems.problem_checks import apply_to_training_images
from classifier_lens.tasks.prompts.target_rules import resolve_class_name
from classifier_lens.tasks.units.addressing import FEATURES, Ranking, Unit, check_units, parse_unit, pooled_outputs

BATCH_SIZE = 64  # images per call of the classifier
MAX_TOP_IMAGES = 16  # most activating images that a ranking stores per unit


def image_batches(
    dataset: Dataset, resolution: int, rows: Sequence[int] | None = None
) -> Iterator[tuple[list[int], list[str], Tensor]]:  # fmt: skip
    """Positions, names and square images (n, 3, resolution, resolution) of a data set or of some of its rows,
    `BATCH_SIZE` at a time."""
    rows = range(len(dataset)) if rows is None else rows
    for first in track_progress(range(0, len(rows), BATCH_SIZE), "training images", BATCH_SIZE):
        positions = list(rows[first : first + BATCH_SIZE])
        examples = [dataset[i] for i in positions]
        yield (
            positions,
            [example.name for example in examples],
            torch.stack([center_crop_resize(e.image, resolution) for e in examples]),
        )


def load_or_compute(cache: Cache, key: Sequence[object], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from the cache, computed and stored if it has none under this key."""
    name = cache.key(*key)
    if (tensors := cache.load([name])) is None:
        computed = {k: v[None].contiguous() for k, v in compute().items()}
        cache.save([name], **computed)
        tensors = cache.load([name]) or computed  # a cache may store nothing
    return {k: v[0] for k, v in tensors.items()}


def check_top_images(top: int) -> int:
    """The number of most activating images. Raises UserError if a ranking does not store so many."""
    if not 1 <= top <= MAX_TOP_IMAGES:
        raise UserError(
            f"task.top_images={top}: allowed are 1 … {MAX_TOP_IMAGES}, the images that a ranking stores per unit"
        )
    return top


def check_training_images(classifier: Classifier, dataset: Dataset) -> None:
    """Raise UserError for a data set without a single class of the classifier."""
    known = {label.lower() for label in classifier.labels}
    if not any(label.lower() in known for label in dataset.labels):
        data_classes, classes = (", ".join(labels[:3]) for labels in (dataset.labels, classifier.labels))
        raise UserError(
            f"training: its classes are {data_classes} …, none of the classifier's ({classes} …); give images of the "
            f"classifier's classes, as data@training=folder training.path=<folder of <class>/<image>>"
        )


@torch.no_grad()
def rank_units(classifier: Classifier, module: str, dataset: Dataset, resolution: int, cache: Cache) -> Ranking:
    """The ranking of a module's units over a whole data set, at `resolution` px. Raises UserError for a data set
    without a class of the classifier."""
    check_training_images(classifier, dataset)
    key = ("unit ranking", MAX_TOP_IMAGES, classifier.fingerprint, module, dataset.digest, resolution)
    return Ranking(**load_or_compute(cache, key, lambda: _rank(classifier, module, dataset, resolution)))


def _rank(classifier: Classifier, module: str, dataset: Dataset, resolution: int) -> dict[str, Tensor]:
    """The tensors of a ranking, from one pass over the data set; sums are in double precision."""
    top = rows = torch.empty(0)
    total = squares = by_class = counts = torch.zeros(())

    def compute(images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Activations and, for the features, the predicted classes."""
        values = ensure_finite(
            pooled_outputs(classifier, images, [module])[module].cpu(), f"the activations of {module}"
        )
        if module != FEATURES or classifier.head is None:
            return values, None
        return values, ensure_finite(classifier(images).logits, "the logits").argmax(dim=1).cpu()

    for positions, names, images in image_batches(dataset, resolution):
        values, predicted = apply_to_training_images(classifier, names, images, compute)
        value_rows = torch.tensor(positions)[:, None].expand_as(values)
        if not len(top):
            top, rows = values[:0], value_rows[:0]
            counts = torch.zeros(len(classifier.labels), 1, dtype=torch.double)
            by_class = torch.zeros(len(classifier.labels), values.shape[1], dtype=torch.double)
        merged, merged_rows = torch.cat([top, values]), torch.cat([rows, value_rows])
        best = merged.topk(min(MAX_TOP_IMAGES, len(merged)), dim=0)
        top, rows = best.values, merged_rows.gather(0, best.indices)
        total, squares = total + values.double().sum(0), squares + values.double().square().sum(0)
        if predicted is not None:
            by_class.index_add_(0, predicted, values.double())
            counts.index_add_(0, predicted, torch.ones(len(predicted), 1, dtype=torch.double))
    mean = total / len(dataset)
    std = (squares / len(dataset) - mean.square()).clamp(min=0).sqrt()
    return {
        "top_values": top, "top_indices": rows.contiguous(), "mean": mean.float(), "std": std.float(),
        "class_means": (by_class / counts.clamp(min=1)).float(),
    }  # fmt: skip


@torch.no_grad()
def most_confident_indices(
    classifier: Classifier, dataset: Dataset, resolution: int, cache: Cache
) -> Int[Tensor, " k"]:
    """Per class the position of the image with the highest confidence in it, at `resolution` px. Raises UserError for a
    data set without a class of the classifier."""
    check_training_images(classifier, dataset)

    def compute() -> dict[str, Tensor]:
        positions, confidences = [], []
        for rows, names, x in image_batches(dataset, resolution):
            positions += rows
            confidences.append(
                apply_to_training_images(classifier, names, x, lambda images: probabilities(classifier, list(images)))
            )
        return {"rows": torch.tensor(positions)[torch.cat(confidences).argmax(dim=0)]}

    return load_or_compute(cache, ("most certain", classifier.fingerprint, dataset.digest, resolution), compute)["rows"]


def top_image_index(
    ranking: Ranking, unit: Unit, label: int, classifier: Classifier, dataset: Dataset, resolution: int
) -> int:
    """The position of the most activating of a unit's stored images that is predicted as the class; if none is, of the
    most activating one."""
    images = torch.stack(
        [center_crop_resize(dataset[int(row)].image, resolution) for row in ranking.top_indices[:, unit.index]]
    )
    with torch.no_grad():
        is_label = ensure_finite(classifier(images).logits, "the classifier's logits").argmax(dim=1) == label
    return int(ranking.top_indices[int(is_label.int().argmax()), unit.index])


def choose_units(units: UnitAddresses, classifier: Classifier, ranking: Callable[[], Ranking]) -> list[Unit]:
    """The units that `task.units` selects.

    `top:<n>`: the features whose standard deviation over the data set changes a logit most; `class:<name>:<n>`: the
    features with the highest mean contribution to the class over the images predicted as it; else addresses of
    `parse_unit`. Raises UserError for anything else, and for units that do not exist.
    """
    selection = parse_unit_selection(units, classifier)
    if selection is None:
        return [parse_unit(u) for u in _addresses(units)]
    label, count = selection
    head = classifier.head
    assert head is not None
    if label is None:
        score = ranking().std * head.weight.abs().amax(dim=0).cpu()
    else:
        score = ranking().class_means[label] * head.weight[label].cpu()
        if not score.any():
            raise UserError(f"task.units={units}: no training image is predicted as '{classifier.labels[label]}'")
    order = score.argsort(descending=True, stable=True)[:count]
    return [Unit(FEATURES, int(i)) for i in order]


def parse_unit_selection(units: UnitAddresses, classifier: Classifier) -> tuple[int | None, int] | None:
    """The class (None for `top:<n>`) and the number of units of a selection by a ranking; None for addresses. Raises
    UserError as `choose_units` does, before anything is ranked."""
    if not (isinstance(units, str) and (kind := units.split(":")[0]) in ("top", "class")):
        check_units(classifier, [parse_unit(u) for u in _addresses(units)])
        return None
    if (match := re.fullmatch(r"(?:top|class:(.+)):(\d+)", units)) is None:
        raise UserError(f"task.units={units}: allowed are top:<n>, class:<name>:<n> and lists of units")
    head = classifier.head
    if head is None:
        raise UserError(f"task.units={units}: the classifier has no known last linear layer; give <module>:<number>")
    name, count = match.groups()
    label = (
        None if kind == "top" else classifier.labels.index(resolve_class_name("task.units", name, classifier.labels))
    )
    width = head.weight.shape[1]
    if not 1 <= int(count) <= width:
        raise UserError(f"task.units={units}: allowed are 1 … {width} units, the number of features")
    return label, int(count)


def _addresses(units: UnitAddresses) -> Sequence[str | int]:
    return [units] if isinstance(units, str | int) else units
