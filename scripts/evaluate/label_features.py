"""Label the features of a planted classifier as core or spurious, by rendering, in Salient ImageNet's columns.

    python scripts/evaluate/label_features.py classifier=planted_shortcut out=labels.csv

All combinations of class, hue, background and prop are rendered. A feature is spurious if background and prop explain
more of its variance than class and hue do. A feature with a share between two fifths and three fifths is ambiguous and
left out. `Options` has the keys and defaults.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data import planted
from classifier_lens.data.salient_imagenet import COLUMNS, CORE
from classifier_lens.runner.configuration.command_line import parse_options
from classifier_lens.runner.configuration.compose import build, compose_config
from classifier_lens.runner.configuration.value_ranges import PerProblemCount
from classifier_lens.runner.protocols import Cache, Classifier, Dataset
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.units.activation_ranking import choose_units, rank_units
from classifier_lens.tasks.units.addressing import FEATURES

AMBIGUOUS_SHARES = (0.4, 0.6)  # features with a share of explained variance in this interval are left out
NUM_ANNOTATORS = 5  # rows per feature
SEED = 4_000  # of the renders; of no split


@dataclass
class Options:
    """Options of the command line. classifier: as for run.py; out: the CSV file."""

    classifier: str = "planted_shortcut"
    features_per_class: PerProblemCount = 5
    out: str = "labels.csv"


@torch.no_grad()
def spurious_variance_shares(classifier: Classifier) -> Float[Tensor, " f"]:
    """Per feature the variance explained by background and prop, as a share of that and the one by class and hue.

    All 2,400 combinations are rendered once, so that the sums of squares of both pairs are orthogonal.
    """
    factors = (len(planted.CLASSES), len(planted.HUES), len(planted.BACKGROUNDS), len(planted.PROPS) + 1)
    grid = torch.tensor(list(product(*map(range, factors))))
    scenes = replace(
        planted.sample_scenes(len(grid), SEED),
        label=grid[:, 0],
        hue=grid[:, 1],
        background=grid[:, 2],
        prop=grid[:, 3] - 1,
    )  # a prop of -1 is none
    parts = [slice(first, first + 200) for first in range(0, len(grid), 200)]
    outputs = [classifier(planted.render(scenes[part]).image).features for part in parts]
    values = torch.cat([features for features in outputs if features is not None]).double()
    if len(values) != len(grid):
        raise UserError(
            "classifier: has no features (no linear last layer was found); label the features of another classifier"
        )
    table = values.unflatten(0, (factors[0] * factors[1], factors[2] * factors[3]))
    object_variance, context_variance = (table.mean(dim=other).var(dim=0, correction=0) for other in (1, 0))
    return (context_variance / (object_variance + context_variance).clamp(min=1e-12)).float()


def label_features(
    classifier: Classifier, training: Dataset, resolution: int, cache: Cache, features_per_class: int, out: Path
) -> int:
    """Write labels of the `features_per_class` features that contribute most to each class; returns the number of
    features left out."""
    shares, left_out = spurious_variance_shares(classifier), 0
    ranking = rank_units(classifier, FEATURES, training, resolution, cache)
    rows: list[tuple[object, ...]] = []
    for label, name in enumerate(classifier.labels):
        units = choose_units(f"class:{name}:{features_per_class}", classifier, lambda: ranking)
        for place, unit in enumerate(units, start=1):
            share = shares[unit.index].item()
            if AMBIGUOUS_SHARES[0] <= share <= AMBIGUOUS_SHARES[1]:
                left_out += 1
            else:
                value = CORE if share < AMBIGUOUS_SHARES[0] else "background"
                rows += [(label, unit.index, place, value)] * NUM_ANNOTATORS
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return left_out


def main(arguments: Sequence[str]) -> int:
    try:
        options = parse_options(Options, arguments)
        config = compose_config([f"classifier={options.classifier}", "task=spurious_audit", "logger=none"])
        parts = build(config)
        task: Any = parts.task
        side, count = parts.generator.resolution, options.features_per_class
        left_out = label_features(parts.classifier, task.training, side, task.cache, count, Path(options.out))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"saved {options.out}; {left_out} features are ambiguous and left out")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
