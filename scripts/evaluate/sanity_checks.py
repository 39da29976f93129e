"""Rows that check the explanations themselves: what is made for a network that knows nothing must not be what another
one knows (Adebayo et al., 2018)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from classifier_lens.models.classifier.image_classifier import ImageClassifier
from classifier_lens.runner.protocols import Classifier
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.disagreement_and_errors import disputed
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Row, Setting, parts_for, posed, solved
from classifier_lens.scripts.evaluate.oracles import TIED, answered
from classifier_lens.tasks.problems.image_problems import probabilities

KNOWS = "planted_shortcut"
LAST = ("layer4", "fc")  # the layers that lose what they learned
SHIFT = 3  # places that labels move on: no class keeps its own, and none gets its pair's or another tied one's


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
        network,
        known.labels,
        known.size,
        mean,
        std,
        known.interpolation,
        known.domain,
        known.ask,
        known.name,
        known.output,
    ).to(known.mean.device)


def stranger_disagreement(setting: Setting, n: int, change: Callable[[nn.Module], None]) -> Estimate:
    """The questions of `planted.disagreement`, answered for a stranger: how often p_f − p_g of the unchanged networks
    reaches the gap in the answers; the note says how often it does for the stranger."""
    parts, config = parts_for(setting, KNOWS, disputed(setting, n, TIED), n)
    task: Any = parts.task
    strange = replace(parts, classifier=stranger(parts.classifier, change))
    given = solved(strange, config, posed(strange, config))
    rows, images = answered(given)
    pictures, hits = list(images), [False] * n
    if rows:
        gaps = probabilities(parts.classifier, pictures) - probabilities(task.rival, pictures)
        for row, gap in zip(rows, gaps, strict=True):
            hits[row] = gap[given[row].problem.target].item() >= config["task"]["gap"]
    return estimates.share(hits, f"to the changed network {100 * sum(a.success for a in given) / n:.1f} %")


ROWS = (
    Row("planted.sanity_permuted", partial(stranger_disagreement, change=permuted), 8, "%", 0.20, "low"),
    Row("planted.sanity_forgotten", partial(stranger_disagreement, change=forgotten), 8, "%", 0.20, "low"),
)
