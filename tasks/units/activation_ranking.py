"""Streaming over a data set: which pictures excite a unit most, and the moments of its activations."""

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
from classifier_lens.tasks.problems.image_problems import probabilities
from classifier_lens.tasks.problems.problem_checks import apply_to_training_images
from classifier_lens.tasks.prompts.target_rules import resolve_class_name
from classifier_lens.tasks.units.addressing import FEATURES, Ranking, Unit, check_units, parse_unit, pooled_outputs

BATCH_SIZE = 64  # pictures per call of the classifier
MAX_TOP_IMAGES = 16  # best pictures per unit


def image_batches(
    dataset: Dataset, resolution: int, rows: Sequence[int] | None = None
) -> Iterator[tuple[list[int], list[str], Tensor]]:  # fmt: skip
    """Positions, names and square pictures (n, 3, resolution, resolution) of a data set, or of some of its rows,
    `BATCH_SIZE` at a time."""
    rows = range(len(dataset)) if rows is None else rows
    for first in track_progress(range(0, len(rows), BATCH_SIZE), "images are looked at", BATCH_SIZE):
        part = list(rows[first : first + BATCH_SIZE])
        examples = [dataset[i] for i in part]
        yield (
            part,
            [example.name for example in examples],
            torch.stack([center_crop_resize(e.image, resolution) for e in examples]),
        )


def load_or_compute(cache: Cache, key: Sequence[object], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What was computed before under the same key, or is computed now."""
    name = cache.key(*key)
    if (found := cache.load([name])) is None:
        computed = {k: v[None].contiguous() for k, v in compute().items()}
        cache.save([name], **computed)
        found = cache.load([name]) or computed  # a cache may keep nothing
    return {k: v[0] for k, v in found.items()}


def check_top_images(top: int) -> int:
    """How many best pictures of a unit are asked for. Raises UserError if no ranking keeps so many."""
    if not 1 <= top <= MAX_TOP_IMAGES:
        raise UserError(
            f"task.top_images={top}: allowed are 1 … {MAX_TOP_IMAGES}, the best pictures that a ranking keeps"
        )
    return top


def check_training_images(classifier: Classifier, dataset: Dataset) -> None:
    """Raise UserError for images of another world than the classifier's: no class of theirs is one of its classes."""
    known = {label.lower() for label in classifier.labels}
    if not any(label.lower() in known for label in dataset.labels):
        theirs, own = (", ".join(labels[:3]) for labels in (dataset.labels, classifier.labels))
        raise UserError(
            f"training: its images show {theirs} …, none of the classifier's classes ({own} …); name its own, such as "
            f"data@training=folder training.path=<folder of <class>/<image>>"
        )


@torch.no_grad()
def rank_units(classifier: Classifier, module: str, dataset: Dataset, resolution: int, cache: Cache) -> Ranking:
    """The ranking of a module's units over a whole data set, whose pictures are shown at `resolution` px. Raises
    UserError for images of another world than the classifier's."""
    check_training_images(classifier, dataset)
    key = ("unit ranking", MAX_TOP_IMAGES, classifier.fingerprint, module, dataset.digest, resolution)
    return Ranking(**load_or_compute(cache, key, lambda: _rank(classifier, module, dataset, resolution)))


def _rank(classifier: Classifier, module: str, dataset: Dataset, resolution: int) -> dict[str, Tensor]:
    """One pass; sums run in double precision."""
    top = rows = torch.empty(0)
    total = squares = by_class = counts = torch.zeros(())

    def look(images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Activations, and what is predicted where classes are told apart."""
        values = ensure_finite(
            pooled_outputs(classifier, images, [module])[module].cpu(), f"the activations of {module}"
        )
        if module != FEATURES or classifier.head is None:
            return values, None
        return values, ensure_finite(classifier(images).logits, "the logits").argmax(dim=1).cpu()

    for positions, names, images in image_batches(dataset, resolution):
        values, predicted = apply_to_training_images(classifier, names, images, look)
        places = torch.tensor(positions)[:, None].expand_as(values)
        if not len(top):
            top, rows = values[:0], places[:0]
            counts = torch.zeros(len(classifier.labels), 1, dtype=torch.double)
            by_class = torch.zeros(len(classifier.labels), values.shape[1], dtype=torch.double)
        merged, merged_rows = torch.cat([top, values]), torch.cat([rows, places])
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
    """Per class the position of the picture that is most surely called so, shown at `resolution` px. Raises UserError
    for images of another world than the classifier's."""
    check_training_images(classifier, dataset)

    def compute() -> dict[str, Tensor]:
        found = [
            (p, apply_to_training_images(classifier, names, x, lambda images: probabilities(classifier, list(images))))
            for p, names, x in image_batches(dataset, resolution)
        ]
        positions = torch.tensor([i for part, _ in found for i in part])
        return {"rows": positions[torch.cat([p for _, p in found]).argmax(dim=0)]}

    return load_or_compute(cache, ("most certain", classifier.fingerprint, dataset.digest, resolution), compute)["rows"]


def top_image_index(
    ranking: Ranking, unit: Unit, label: int, classifier: Classifier, dataset: Dataset, resolution: int
) -> int:
    """The position of the highest of a unit's best images that are predicted as the class; where none is, of the
    highest one."""
    images = torch.stack(
        [center_crop_resize(dataset[int(row)].image, resolution) for row in ranking.top_indices[:, unit.index]]
    )
    with torch.no_grad():
        own = ensure_finite(classifier(images).logits, "the classifier's logits").argmax(dim=1) == label
    return int(ranking.top_indices[int(own.int().argmax()), unit.index])


def choose_units(units: UnitAddresses, classifier: Classifier, ranking: Callable[[], Ranking]) -> list[Unit]:
    """The units that `task.units` names.

    `top:<n>`: the features whose spread over the data set moves a logit most; `class:<name>:<n>`: the features with the
    highest mean contribution to the class over the pictures predicted as it; else addresses as `parse_unit` takes them.
    Raises UserError for anything else, and for units that are not there.
    """
    ranked = parse_unit_selection(units, classifier)
    if ranked is None:
        return [parse_unit(u) for u in _addresses(units)]
    label, count = ranked
    head = classifier.head
    assert head is not None
    if label is None:
        score = ranking().std * head.weight.abs().amax(dim=0).cpu()
    else:
        score = ranking().class_means[label] * head.weight[label].cpu()
        if not score.any():
            raise UserError(f"task.units={units}: no training picture is predicted as '{classifier.labels[label]}'")
    order = score.argsort(descending=True, stable=True)[:count]
    return [Unit(FEATURES, int(i)) for i in order]


def parse_unit_selection(units: UnitAddresses, classifier: Classifier) -> tuple[int | None, int] | None:
    """Of units that a ranking chooses the class, None for all of them, and how many; None where units are named.
    Raises UserError as `choose_units` does, before anything is ranked."""
    if not (isinstance(units, str) and (kind := units.split(":")[0]) in ("top", "class")):
        check_units(classifier, [parse_unit(u) for u in _addresses(units)])
        return None
    if (found := re.fullmatch(r"(?:top|class:(.+)):(\d+)", units)) is None:
        raise UserError(f"task.units={units}: allowed are top:<n>, class:<name>:<n> and lists of units")
    head = classifier.head
    if head is None:
        raise UserError(f"task.units={units}: no last linear layer is known; name a module and a number")
    name, count = found.groups()
    label = (
        None if kind == "top" else classifier.labels.index(resolve_class_name("task.units", name, classifier.labels))
    )
    width = head.weight.shape[1]
    if not 1 <= int(count) <= width:
        raise UserError(f"task.units={units}: allowed are 1 … {width} units, as many as there are")
    return label, int(count)


def _addresses(units: UnitAddresses) -> Sequence[str | int]:
    return [units] if isinstance(units, str | int) else units
