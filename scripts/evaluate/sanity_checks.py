"""Sanity checks of explanations: results for a randomized network must not show what the trained network has learned
(Adebayo et al., 2018)."""

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
from classifier_lens.tasks.analysis.predictions import probabilities

TRAINED_CLASSIFIER = "planted_shortcut"
RANDOMIZED_LAYERS = ("layer4", "fc")
# No class keeps its label or gets that of its pair, and none gets that of another class with a shortcut.
LABEL_SHIFT = 3


def permute_labels(network: nn.Module) -> None:
    """Give every class the logit of another one."""
    linear = network.get_submodule(RANDOMIZED_LAYERS[-1])
    for value in linear.parameters():
        value.copy_(value.roll(LABEL_SHIFT, dims=0))


def randomize_weights(network: nn.Module) -> None:
    """Shuffle the weights of the last layers, so that the scale of logits stays."""
    generator = torch.Generator().manual_seed(0)
    for layer in RANDOMIZED_LAYERS:
        for value in network.get_submodule(layer).parameters():
            order = torch.randperm(value.numel(), generator=generator)
            value.copy_(value.flatten()[order].view_as(value))


@torch.no_grad()
def modified_classifier(classifier: Classifier, change: Callable[[nn.Module], None]) -> ImageClassifier:
    """A copy of a classifier with a changed network."""
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
    """The problems of `planted.disagreement`, solved for a modified classifier: how often p_f − p_g of the unmodified
    networks reaches the gap on the results; the note has how often it does for the modified classifier."""
    parts, config = configure_run(setting, TRAINED_CLASSIFIER, disagreement_overrides(setting, n, SHORTCUT_CLASSES), n)
    task: Any = parts.task
    modified_parts = replace(parts, classifier=modified_classifier(parts.classifier, change))
    results = run_problems(modified_parts, config, list_problems(modified_parts, config))
    indices, images = result_images(results)
    image_list, hits = list(images), [False] * n
    if indices:
        gaps = probabilities(parts.classifier, image_list) - probabilities(task.rival, image_list)
        for row, gap in zip(indices, gaps, strict=True):
            hits[row] = gap[results[row].problem.target].item() >= config["task"]["min_confidence_gap"]
    return estimates.proportion(
        hits, f"for the modified network {100 * sum(result.success for result in results) / n:.1f} %"
    )


METRICS = (
    Metric("planted.sanity_permuted_labels", partial(sanity_disagreement, change=permute_labels), 8, "%", 0.20, False),
    Metric(
        "planted.sanity_randomized_weights", partial(sanity_disagreement, change=randomize_weights), 8, "%", 0.20, False
    ),
)
