"""What a classifier calls many pictures of one prompt: the activation score of DiffExplainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import binomtest
from torch import Tensor
from torchvision.utils import make_grid

from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, TaskInputs
from classifier_lens.runner.types import Images
from classifier_lens.tasks.problems.image_problems import probabilities
from classifier_lens.tasks.prompts.caption_edit import format_prompt
from classifier_lens.tasks.units.activation_ranking import most_confident_indices
from classifier_lens.tasks.units.word_activations import generate_images


@dataclass(frozen=True)
class ActivationScore:
    """How many of `count` pictures are called a class, and the mean confidence in it."""

    hits: int
    count: int
    confidence: float

    @property
    def value(self) -> float:
        """The activation score."""
        return self.hits / self.count

    def record(self) -> dict[str, Any]:
        """Plain values, with the 95 % Wilson interval of the share."""
        ends = binomtest(self.hits, self.count).proportion_ci(method="wilson")
        return {
            "activation_score": self.value, "interval": [float(ends.low), float(ends.high)], "images": self.count,
            "mean_confidence": self.confidence,
        }  # fmt: skip


def stack_result_images(pictures: Images) -> Float[Tensor, "n 3 h w"]:
    """The reported pictures of an answer, the one that counts first."""
    return torch.stack([pictures["best"], *(pictures[name] for name in sorted(pictures) if name.startswith("sample_"))])


def measure_activation_score(
    classifier: Classifier, images: Sequence[Float[Tensor, "3 h w"]], target: int
) -> ActivationScore:
    """What the classifier calls pictures."""
    p = probabilities(classifier, images)
    return ActivationScore(int((p.argmax(dim=1) == target).sum()), len(p), float(p[:, target].mean()))


def gray_outside_mask(images: Float[Tensor, "n 3 h w"], masks: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Pictures in grey where a mask in [0, 1] is 0 and in their colours where it is 1."""
    grey = 0.5 * images.mean(dim=1, keepdim=True) + 0.25
    return torch.lerp(grey.expand_as(images), images, masks)


def image_grid(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "3 y x"]:
    """Pictures beside each other, five a row."""
    return make_grid(images, nrow=5, padding=1, pad_value=1.0)


@dataclass(frozen=True)
class BaselinePrompt:
    """A prompt that anybody could have written, and its score on fresh pictures."""

    prompt: str
    score: ActivationScore

    def record(self, result_score: ActivationScore) -> dict[str, Any]:
        """Plain values, and how another score compares."""
        verdicts = {1: "beats", 0: "equals", -1: "falls short of"}
        sign = (result_score.value > self.score.value) - (result_score.value < self.score.value)
        return {"prompt": self.prompt, **self.score.record(), "verdict": verdicts[sign]}


def most_confident_index(label: str, world: TaskInputs, training: Dataset, cache: Cache) -> int:
    """The position of the training image that is predicted as a class with the highest confidence."""
    rows = most_confident_indices(world.classifier, training, world.generator.resolution, cache)
    return int(rows[world.classifier.labels.index(label)])


def score_baseline_prompts(
    label: str,
    world: TaskInputs,
    templates: Mapping[str, str],
    training: Dataset,
    captioner: Captioner,
    images_per_prompt: int,
    cache: Cache,
) -> dict[str, BaselinePrompt]:
    """Plain prompts of a class, `images_per_prompt` pictures of each: from templates by name, and the caption of the
    training picture that is most surely of the class, `best caption`."""
    target = world.classifier.labels.index(label)
    best = training[most_confident_index(label, world, training, cache)]
    prompts = {name: format_prompt(template, label) for name, template in templates.items()}
    prompts["best caption"] = best.caption or captioner.caption(best)
    shown = {
        name: list(generate_images(prompt, "{phrase}", images_per_prompt, world, cache))
        for name, prompt in prompts.items()
    }
    return {
        name: BaselinePrompt(prompt, measure_activation_score(world.classifier, shown[name], target))
        for name, prompt in prompts.items()
    }


def best_restarts(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By class: the restart with the lowest loss, how far the scores of restarts lie apart, and the plain prompts'."""
    by_class: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_class.setdefault(record["target"], []).append(record)
    table = {}
    for label, own in by_class.items():
        best, scores = min(own, key=lambda r: r["loss"]["total"]), [r["activation_score"] for r in own]
        table[label] = {
            "best": best["name"], "prompt": best["prompt"], "activation_score": best["activation_score"],
            "restarts": len(own), "lowest": min(scores), "highest": max(scores),
            **{name: r["activation_score"] for name, r in best["rivals"].items()},
        }  # fmt: skip
    return table
