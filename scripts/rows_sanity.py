"""Rows that check the explanations themselves: for a network that knows nothing they must not show what another knows
(Adebayo et al., 2018)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from data import planted
from models.classifier import ImageClassifier
from runner.types import Classifier, World
from scripts import metrics
from scripts.judges import called
from scripts.metrics import Estimate
from scripts.rows import Answer, Row, Setting, asked, solved
from scripts.rows_dig_in import WEAK
from scripts.rows_planted import answered

LAST = ("layer4", "fc")  # the layers that lose what they learned
SHIFT = 3  # places that labels move on: no class keeps its own, and none gets its pair's


@dataclass(frozen=True)
class Asked:
    """A task whose questions are given: those of the network that knows something."""

    task: Any
    given: Sequence[Any]

    def problems(self, world: World) -> tuple[list[Any], int]:
        return list(self.given), len(self.given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def permuted(network: nn.Module) -> None:
    """Every class gets the logit of another one."""
    linear = network.get_submodule(LAST[-1])
    for value in linear.parameters():
        value.copy_(value.roll(SHIFT, dims=0))


def forgotten(network: nn.Module) -> None:
    """The last layers' weights stand in random order, so that logits keep their size."""
    generator = torch.Generator().manual_seed(0)
    for layer in LAST:
        for value in network.get_submodule(layer).parameters():
            order = torch.randperm(value.numel(), generator=generator)
            value.copy_(value.flatten()[order].view_as(value))


@torch.no_grad()
def stranger(known: Classifier, change: Callable[[nn.Module], None]) -> ImageClassifier:
    """A changed copy of a classifier."""
    assert isinstance(known, ImageClassifier)
    network = deepcopy(known.network)
    change(network)
    mean, std = known.mean.flatten().tolist(), known.std.flatten().tolist()
    return ImageClassifier(
        network, known.labels, known.size, mean, std, known.interpolation, known.domain, known.ask, known.name
    ).to(known.mean.device)


@cache
def misled(setting: Setting, n: int, change: Callable[[nn.Module], None]) -> tuple[Answer, ...]:
    """The questions of `planted.error_corrected`, answered for a stranger."""
    parts, config, problems = asked(setting, WEAK.classifier, WEAK.overrides(setting), n)
    task: Any = Asked(parts.task, problems)
    return solved(replace(parts, classifier=stranger(parts.classifier, change), task=task), config, problems)


def corrected_by_stranger(setting: Setting, n: int, change: Callable[[nn.Module], None]) -> Estimate:
    """How often pictures that were made for the stranger are the label to the network that the questions are of; the
    note says how often they are to the stranger."""
    given = misled(setting, n, change)
    rows, images = answered(given)
    wanted = [planted.CLASSES[given[i].problem.target] for i in rows]
    hits = [a == b for a, b in zip(called(setting, WEAK.classifier, images), wanted, strict=True)] if rows else []
    own = 100 * sum(a.success for a in given) / n
    return metrics.share(hits + [False] * (n - len(rows)), f"to the changed network {own:.1f} %")


ROWS = (
    Row("planted.sanity_permuted", partial(corrected_by_stranger, change=permuted), 32, "%", 0.20, "low"),
    Row("planted.sanity_forgotten", partial(corrected_by_stranger, change=forgotten), 32, "%", 0.20, "low"),
)
