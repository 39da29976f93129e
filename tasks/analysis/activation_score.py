"""How often images of one prompt are predicted as a class: the activation score of DiffExplainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypedDict

import torch
from jaxtyping import Float
from scipy.stats import binomtest
from torch import Tensor
from torchvision.utils import make_grid

from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, TaskInputs
from classifier_lens.runner.result_schema import Label, Record, ResultImages
from classifier_lens.tasks.analysis.predictions import probabilities
from classifier_lens.tasks.prompts.caption_edit import format_prompt
from classifier_lens.tasks.units.activation_ranking import most_confident_indices
from classifier_lens.tasks.units.word_activations import generate_images

IMAGES_PER_GRID_ROW = 5


class ScoreFields(TypedDict):
    """An activation score with its 95 % Wilson interval."""

    activation_score: Annotated[float, Label("Activation score")]
    activation_score_interval: Annotated[list[float], Label("95\u00a0% interval")]
    num_images: Annotated[int, Label("Images")]
    mean_confidence: Annotated[float, Label("Mean confidence")]


class BaselinePromptRecord(ScoreFields):
    """A baseline prompt, its score, and how the score of the optimized prompt compares."""

    prompt: Annotated[str, Label("Prompt")]
    comparison: Annotated[str, Label("Optimized prompt")]


class BaselinePrompts(TypedDict):
    """The baseline prompts of a class, by name."""

    class_name: Annotated[BaselinePromptRecord, Label("Class name")]
    caption: Annotated[BaselinePromptRecord, Label("Caption")]


class RestartSummary(TypedDict):
    """A class in the summary: its best restart and the spread of all. Scores of baseline prompts are added by name."""

    best_restart: Annotated[str, Label("Best restart")]
    prompt: Annotated[str, Label("Prompt")]
    activation_score: Annotated[float, Label("Activation score")]
    restarts: Annotated[int, Label("Restarts")]
    min_activation_score: Annotated[float, Label("Lowest of the restarts")]
    max_activation_score: Annotated[float, Label("Highest of the restarts")]
    class_name: Annotated[float, Label("Score of the class name")]
    caption: Annotated[float, Label("Score of the caption")]


@dataclass(frozen=True)
class ActivationScore:
    """hits: how many of `count` images are predicted as a class; mean_confidence: in the class, over all images."""

    hits: int
    count: int
    mean_confidence: float

    @property
    def value(self) -> float:
        """The activation score, hits / count."""
        return self.hits / self.count

    def record(self) -> ScoreFields:
        """The score as a result stores it."""
        ends = binomtest(self.hits, self.count).proportion_ci(method="wilson")
        return {
            "activation_score": self.value, "activation_score_interval": [float(ends.low), float(ends.high)],
            "num_images": self.count, "mean_confidence": self.mean_confidence,
        }  # fmt: skip


def stack_result_images(images: ResultImages) -> Float[Tensor, "n 3 h w"]:
    """The result and the further images of its prompt."""
    return torch.stack([images.result, *images.samples])


def measure_activation_score(
    classifier: Classifier, images: Sequence[Float[Tensor, "3 h w"]], target: int
) -> ActivationScore:
    """The activation score of images for the class with index `target`."""
    p = probabilities(classifier, images)
    return ActivationScore(int((p.argmax(dim=1) == target).sum()), len(p), float(p[:, target].mean()))


def gray_outside_mask(images: Float[Tensor, "n 3 h w"], masks: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Images in gray where a mask in [0, 1] is 0, in color where it is 1."""
    gray = 0.5 * images.mean(dim=1, keepdim=True) + 0.25
    return torch.lerp(gray.expand_as(images), images, masks)


def image_grid(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "3 y x"]:
    """Images side by side, `IMAGES_PER_GRID_ROW` per row."""
    return make_grid(images, nrow=IMAGES_PER_GRID_ROW, padding=1, pad_value=1.0)


@dataclass(frozen=True)
class BaselinePrompt:
    """A prompt that was not optimized, and its score on images of new noise."""

    prompt: str
    score: ActivationScore

    def record(self, optimized_score: ActivationScore) -> BaselinePromptRecord:
        """The prompt as a result stores it."""
        comparisons = {1: "beats", 0: "equals", -1: "falls short of"}
        sign = (optimized_score.value > self.score.value) - (optimized_score.value < self.score.value)
        return {"prompt": self.prompt, **self.score.record(), "comparison": comparisons[sign]}


def most_confident_index(label: str, inputs: TaskInputs, training: Dataset, cache: Cache) -> int:
    """The position of the training image that is predicted as a class with the highest confidence."""
    rows = most_confident_indices(inputs.classifier, training, inputs.generator.resolution, cache)
    return int(rows[inputs.classifier.labels.index(label)])


def score_baseline_prompts(
    label: str, inputs: TaskInputs, class_name_prompt: str, training: Dataset, captioner: Captioner,
    images_per_prompt: int, cache: Cache,
) -> dict[str, BaselinePrompt]:  # fmt: skip
    """Baseline prompts of a class with their scores on `images_per_prompt` images each. `class_name`: a template with
    the class name; `caption`: the caption of the training image with the highest confidence in the class."""
    target = inputs.classifier.labels.index(label)
    example = training[most_confident_index(label, inputs, training, cache)]
    prompts = {
        "class_name": format_prompt(class_name_prompt, label),
        "caption": example.caption or captioner.caption(example),
    }
    images = {
        name: list(generate_images(prompt, "{phrase}", images_per_prompt, inputs, cache))
        for name, prompt in prompts.items()
    }
    return {
        name: BaselinePrompt(prompt, measure_activation_score(inputs.classifier, images[name], target))
        for name, prompt in prompts.items()
    }


def best_restarts(records: Sequence[Record]) -> dict[str, RestartSummary]:
    """By class: the restart with the lowest loss, the range of the scores of all restarts, and the scores of the
    baseline prompts."""
    by_class: dict[str, list[Record]] = {}
    for record in records:
        by_class.setdefault(record["target"], []).append(record)
    return {label: _summarize_restarts(restarts) for label, restarts in by_class.items()}


def _summarize_restarts(restarts: Sequence[Record]) -> RestartSummary:
    best = min(restarts, key=lambda r: r["loss"]["total"])
    scores = [r["activation_score"] for r in restarts]
    baselines: Mapping[str, ScoreFields] = best["baseline_prompts"]
    return {
        "best_restart": best["name"], "prompt": best["prompt"], "activation_score": best["activation_score"],
        "restarts": len(restarts), "min_activation_score": min(scores), "max_activation_score": max(scores),
        "class_name": baselines["class_name"]["activation_score"],
        "caption": baselines["caption"]["activation_score"],
    }  # fmt: skip
