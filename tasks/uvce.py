"""Visual counterfactual explanations (UVCE; DiG-IN, Section 5, Algorithm 2): a minimal change of an image after which a
classifier predicts a target class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from statistics import fmean, pstdev
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.image_selection import check_choice
from classifier_lens.data.images import center_crop_resize
from classifier_lens.runner.configuration.value_ranges import (
    EditWeights,
    Keys,
    OneOf,
    PerProblemCount,
    Positive,
    Preserve,
)
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, Embedder, TaskInputs
from classifier_lens.runner.result_schema import (
    RESULT,
    ImageField,
    Label,
    Record,
    ResultImages,
    ResultSchema,
    StageFields,
    SummaryFields,
)
from classifier_lens.runner.types import Example, Objective, PromptToPromptOverrides, Reference, UserError
from classifier_lens.tasks.analysis.predictions import confidences_by_stage, measure_confidences
from classifier_lens.tasks.analysis.success import PredictionSuccess, prediction_success, success_counts
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.objectives.loss_terms import class_log_prob, text_log_prob
from classifier_lens.tasks.problems.counterfactual_problems import (
    MODES,
    CounterfactualProblem,
    CounterfactualSettings,
    clip_of,
)
from classifier_lens.tasks.problems.image_problems import image_fields, problems_of_images
from classifier_lens.tasks.problems.problem_names import problem_seed, slug
from classifier_lens.tasks.prompts.context_search import ContextSearch
from classifier_lens.tasks.prompts.target_rules import (
    RuleInputs,
    TargetRule,
    check_target_rule,
    resolve_class_name,
    targets_per_image,
)


class UvceRecord(PredictionSuccess, StageFields):
    """source, target: class names, or the two phrases of the mode `attribute`."""

    source: Annotated[str, Label("Source class")]
    target: Annotated[str, Label("Target")]


class UvceSummary(SummaryFields, total=False):
    """mean_confidence_std: over the results of an image that differ in their seed alone, if there are several."""

    mean_confidence_std: Annotated[float, Label("Standard deviation of the confidence over seeds")]


RESULT_SCHEMA = ResultSchema(
    "Visual counterfactuals (UVCE)",
    UvceRecord,
    summary=[UvceSummary],
    images=[ImageField(RESULT.key, "Counterfactual")],
)


@dataclass
class Uvce:
    """mode: one of `counterfactual_problems.MODES`; target: in the mode `class`, a rule of `target_rules`, a class or
    several; attribute: in the mode `attribute`, the phrases and the mask, see `CounterfactualSettings`; temperature: of
    the softmax over the two prompts, None for the CLIP model's own; preserve, mask: see `Problem`; num_seeds: results
    per image; class_name_prompt: template of the image that checks whether the generator knows a class name;
    context_search: in the mode `error`; weights: of the terms (w_VAE = 25, w_PX = 250 in D.1.5); baseline: see
    `runner.baselines.methods`; cache: stores the images of the context search."""

    mode: Annotated[str, OneOf(tuple(MODES))]
    target: TargetRule
    attribute: Annotated[Mapping[str, str], Keys(("source", "target", "mask_words"))]
    temperature: Positive | None
    preserve: Preserve
    mask: str | None
    num_seeds: PerProblemCount
    baseline: str
    weights: EditWeights
    context_search: ContextSearch
    captioner: Captioner
    class_name_prompt: str
    cache: Cache

    dependencies = ()

    def __post_init__(self) -> None:
        check_choice("task.mode", self.mode, MODES)

    @property
    def prompt_to_prompt(self) -> PromptToPromptOverrides:
        """In the mode `error` the caption names the true class already; unless it changes, no maps are injected."""
        if self.mode == "error" and self.context_search.context_phrases is None:
            return {"cross_replace_steps": [0.0]}
        return {}

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        if self.mode == "attribute":
            clip_of(classifier)
        if self.mode == "class":
            check_target_rule(self.target, classifier.labels)

    def problems(self, inputs: TaskInputs) -> tuple[list[CounterfactualProblem], int | None]:
        """One problem per image, target and seed, in the data set's order. The total is known only if all images have
        the same number of targets."""
        self.check(inputs.classifier, inputs.dataset)
        num_images = len(inputs.dataset)
        problems = problems_of_images(inputs.dataset, range(num_images), partial(self._image_problems, inputs))
        first_problems = list(islice(problems, inputs.limit))
        if not first_problems:
            raise UserError(f"task.mode={self.mode}: none of the {num_images} images has a target in this mode")
        per_image = targets_per_image(self.target, inputs.classifier.labels) if self.mode == "class" else None
        return first_problems, None if per_image is None else num_images * per_image * self.num_seeds

    def _image_problems(self, inputs: TaskInputs, i: int, example: Example) -> Iterator[CounterfactualProblem]:
        """The problems of one image."""
        labels, side = inputs.classifier.labels, inputs.generator.resolution
        fields = image_fields(inputs.dataset, i, example, side, self.preserve, self.mask)
        label = resolve_class_name("data.label", example.label, labels)
        square = replace(example, label=label, load=lambda: center_crop_resize(example.image, side))
        rule_inputs = RuleInputs(square, inputs, problem_seed(inputs.seed, i))
        settings = CounterfactualSettings(
            self.target, self.attribute, self.class_name_prompt, self.captioner, self.context_search, self.cache
        )
        for target in MODES[self.mode](rule_inputs, settings):
            for k in range(self.num_seeds):
                yield CounterfactualProblem(
                    name=f"{example.name}-{slug(target.name, labels)}" + (f"-{k}" if self.num_seeds > 1 else ""),
                    seed=problem_seed(inputs.seed, i, k),
                    edit=target.edit,
                    source=target.source,
                    target=target.target,
                    prompt_check=target.prompt_check,
                    mask_words=target.mask_words,
                    editable_from_noise=target.editable_from_noise,
                    label_index=labels.index(label) if target.label_index is None else target.label_index,
                    **fields,
                )

    def objective(
        self, problems: Sequence[CounterfactualProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        """−log p(y|x) of the target, among the classes or the two prompts, and the two distances of Eq. 4."""
        targets = torch.tensor([p.target for p in problems])
        term = class_log_prob(classifier, targets)
        if self.mode == "attribute":
            clip = clip_of(classifier)
            texts = torch.stack([clip.embed_texts([p.edit.source, p.edit.target]) for p in problems])
            term = text_log_prob(clip, texts, targets, self._temperature(clip))
        return {"class_log_prob": (self.weights["class_log_prob"], term), **distances(reference, self.weights)}

    def _temperature(self, clip: Embedder) -> float:
        return 1 / clip.logit_scale if self.temperature is None else self.temperature

    def illustrate(
        self, problem: CounterfactualProblem, images: ResultImages, classifier: Classifier
    ) -> dict[ImageField, Float[Tensor, "c h w"]]:
        return {}

    def measure(self, problem: CounterfactualProblem, images: ResultImages, classifier: Classifier) -> UvceRecord:
        """Predictions and confidences. A result is a success if the prediction changes to the target."""
        if self.mode == "attribute":
            return self._measure_attribute(problem, images, clip_of(classifier))
        source, target = classifier.labels[problem.source], classifier.labels[problem.target]
        measured = measure_confidences(classifier, images, [problem.source, problem.target])
        return {**prediction_success(measured, target), "source": source, "target": target, **measured}

    @torch.no_grad()
    def _measure_attribute(self, problem: CounterfactualProblem, images: ResultImages, clip: Embedder) -> UvceRecord:
        """The same of the two prompts in place of classes, named by their phrases."""
        edit = problem.edit
        phrases = (edit.source_words, edit.target_words)
        similarity = clip.embed_images(torch.stack(images.stages)) @ clip.embed_texts((edit.source, edit.target)).T
        p = (similarity / self._temperature(clip)).softmax(dim=-1).cpu()
        measured = confidences_by_stage(p, phrases, range(len(phrases)))
        return {**prediction_success(measured, phrases[1]), "source": phrases[0], "target": phrases[1], **measured}

    def summarize(self, records: Sequence[Record]) -> UvceSummary:
        """Successes and, with several seeds, the mean standard deviation of the target's confidence per image."""
        confidences: dict[tuple[str, str], list[float]] = {}
        for r in records:
            confidences.setdefault((r["image_name"], r["target"]), []).append(r["confidence_after"][r["target"]])
        stds = [pstdev(values) for values in confidences.values() if len(values) > 1]
        summary: UvceSummary = {**success_counts(records)}
        if stds:
            summary["mean_confidence_std"] = fmean(stds)
        return summary
