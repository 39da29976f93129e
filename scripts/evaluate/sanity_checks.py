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
from classifier_lens.scripts.evaluate.disagreement_and_errors import disagreement_overrides
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Metric, Setting, configure_run, list_problems, run_problems
from classifier_lens.scripts.evaluate.oracles import SHORTCUT_CLASSES, result_images
from classifier_lens.tasks.problems.image_problems import probabilities

TRAINED_CLASSIFIER = "planted_shortcut"
RANDOMIZED_LAYERS = ("layer4", "fc")  # the layers that lose what they learned
LABEL_SHIFT = 3  # places that labels move on: no class keeps its own, and none gets its pair's or another tied one's


def permute_labels(network: nn.Module) -> None:
    """Every class gets the logit of another one."""
    linear = network.get_submodule(RANDOMIZED_LAYERS[-1])
    for value in linear.parameters():
        value.copy_(value.roll(LABEL_SHIFT, dims=0))


def randomize_weights(network: nn.Module) -> None:
    """The last layers' weights stand in random order, so that logits keep their size."""
    generator = torch.Generator().manual_seed(0)
    for layer in RANDOMIZED_LAYERS:
        for value in network.get_submodule(layer).parameters():
            order = torch.randperm(value.numel(), generator=generator)
            value.copy_(value.flatten()[order].view_as(value))


@torch.no_grad()
def modified_classifier(classifier: Classifier, change: Callable[[nn.Module], None]) -> ImageClassifier:
    """A changed copy of a classifier."""
    assert isinstance(classifier, ImageClassifier)
    network = deepcopy(classifier.network)
    change(network)
    mean, std = classifier.mean.flatten().tolist(), classifier.std.flatten().tolist()
    return ImageClassifier(
        network,
        classifier.labels,
        classifier.size,
        mean,
        std,
        classifier.interpolation,
        classifier.domain,
        classifier.forward_fn,
        classifier.error_prefix,
        classifier.output,
    ).to(classifier.mean.device)


def sanity_disagreement(setting: Setting, n: int, change: Callable[[nn.Module], None]) -> Estimate:
    """The questions of `planted.disagreement`, answered for a stranger: how often p_f − p_g of the unchanged networks
    reaches the gap in the answers; the note says how often it does for the stranger."""
    parts, config = configure_run(setting, TRAINED_CLASSIFIER, disagreement_overrides(setting, n, SHORTCUT_CLASSES), n)
    task: Any = parts.task
    strange = replace(parts, classifier=modified_classifier(parts.classifier, change))
    given = run_problems(strange, config, list_problems(strange, config))
    rows, images = result_images(given)
    pictures, hits = list(images), [False] * n
    if rows:
        gaps = probabilities(parts.classifier, pictures) - probabilities(task.rival, pictures)
        for row, gap in zip(rows, gaps, strict=True):
            hits[row] = gap[given[row].problem.target].item() >= config["task"]["min_confidence_gap"]
    return estimates.proportion(hits, f"to the changed network {100 * sum(a.success for a in given) / n:.1f} %")


ROWS = (
    Metric("planted.sanity_permuted", partial(sanity_disagreement, change=permute_labels), 8, "%", 0.20, False),
    Metric("planted.sanity_forgotten", partial(sanity_disagreement, change=randomize_weights), 8, "%", 0.20, False),
)
