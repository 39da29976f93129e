"""Universal visual counterfactual explanations (DiG-IN, Section 5, Algorithm 2): what would have to change in a
picture for a classifier to call it something else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from statistics import fmean, pstdev
from typing import Annotated, Any

import torch
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
from classifier_lens.runner.types import Example, Images, Objective, Reference, UserError
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.objectives.loss_terms import class_log_prob, text_log_prob
from classifier_lens.tasks.problems.counterfactual_problems import (
    MODES,
    CounterfactualProblem,
    CounterfactualSettings,
    clip_of,
)
from classifier_lens.tasks.problems.image_problems import (
    STAGES,
    confidences_by_stage,
    image_fields,
    measure_confidences,
    prediction_success,
    problem_seed,
    problems_of_images,
    slug,
    success_counts,
)
from classifier_lens.tasks.prompts.context_search import ContextSearch
from classifier_lens.tasks.prompts.target_rules import (
    RuleInputs,
    TargetRule,
    check_target_rule,
    resolve_class_name,
    targets_per_image,
)


class Uvce:
    """mode: one of `counterfactual_problems.MODES`; target: a rule of `target_rules`, a class or several, in the mode
    `class`; attribute: {source, target} phrases, in the mode `attribute`; temperature: of its softmax over the two
    prompts, None for the CLIP model's own; num_seeds: answers per picture; prompt: template of a class's own picture;
    context_search: the search for words to start with, in the mode `error`; weights: of the objective's terms (w_VAE =
    25, w_PX = 250 in D.1.5); baseline: see `runner.baselines.methods`; cache: keeps the words' pictures."""

    def __init__(
        self,
        mode: Annotated[str, OneOf(tuple(MODES))],
        target: TargetRule,
        attribute: Annotated[Mapping[str, str], Keys(("source", "target", "mask_words"))],
        temperature: Positive | None,
        preserve: Preserve,
        mask: str | None,
        num_seeds: PerProblemCount,
        baseline: str,
        weights: EditWeights,
        context_search: ContextSearch,
        captioner: Captioner,
        prompt: str,
        cache: Cache,
    ) -> None:
        self.mode = check_choice("task.mode", mode, MODES)
        self.settings, self.captioner = (
            CounterfactualSettings(target, attribute, prompt, captioner, context_search, cache),
            captioner,
        )
        self.temperature, self.preserve, self.mask = temperature, preserve, mask
        self.num_seeds = num_seeds
        self.baseline, self.weights, self.dependencies = baseline, weights, ()
        # An error's caption names the true class already. Where nothing else changes, there are no maps to inject.
        self.prompt_to_prompt = (
            {"cross_replace_steps": [0.0]} if mode == "error" and context_search.context_phrases is None else {}
        )

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        if self.mode == "attribute":
            clip_of(classifier)
        if self.mode == "class":
            check_target_rule(self.settings.target, classifier.labels)

    def problems(self, world: TaskInputs) -> tuple[list[CounterfactualProblem], int | None]:
        """One problem per picture, question and seed, in the data set's order; only those within the limit are made.
        How many there are in all is only known where every picture asks the same number of questions."""
        self.check(world.classifier, world.dataset)
        per_picture = targets_per_image(self.settings.target, world.classifier.labels) if self.mode == "class" else None
        every = range(len(world.dataset))
        found = list(
            islice(problems_of_images(world.dataset, every, partial(self._image_problems, world)), world.limit)
        )
        if not found:
            raise UserError(f"task.mode={self.mode}: none of the {len(world.dataset)} pictures asks this question")
        return found, None if per_picture is None else len(world.dataset) * per_picture * self.num_seeds

    def _image_problems(self, world: TaskInputs, i: int, example: Example) -> Iterator[CounterfactualProblem]:
        """What is asked of one image."""
        labels, side = world.classifier.labels, world.generator.resolution
        fields = image_fields(world.dataset, i, example, side, self.preserve, self.mask)
        label = resolve_class_name("data.label", example.label, labels)
        shown = replace(example, label=label, load=lambda: center_crop_resize(example.image, side))
        choice = RuleInputs(shown, world, problem_seed(world.seed, i))
        for question in MODES[self.mode](choice, self.settings):
            for k in range(self.num_seeds):
                yield CounterfactualProblem(
                    name=f"{example.name}-{slug(question.name, labels)}" + (f"-{k}" if self.num_seeds > 1 else ""),
                    seed=problem_seed(world.seed, i, k),
                    edit=question.edit,
                    source=question.source,
                    target=question.target,
                    prompt_check=question.prompt_check,
                    mask_words=question.mask_words,
                    editable_from_noise=question.editable_from_noise,
                    label_index=labels.index(label) if question.label_index is None else question.label_index,
                    **fields,
                )

    def objective(
        self, problems: Sequence[CounterfactualProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        """−log p(y|x), of the classifier's classes or of the two prompts, and the two distances of Eq. 4."""
        wanted = torch.tensor([p.target for p in problems])
        term = class_log_prob(classifier, wanted)
        if self.mode == "attribute":
            clip = clip_of(classifier)
            texts = torch.stack([clip.embed_texts([p.edit.source, p.edit.target]) for p in problems])
            term = text_log_prob(clip, texts, wanted, self._temperature(clip))
        return {"class_log_prob": (self.weights["class_log_prob"], term), **distances(reference, self.weights)}

    def _temperature(self, clip: Embedder) -> float:
        return 1 / clip.logit_scale if self.temperature is None else self.temperature

    def illustrate(self, problem: CounterfactualProblem, pictures: Images, classifier: Classifier) -> dict[str, Tensor]:
        return {}

    def measure(self, problem: CounterfactualProblem, pictures: Images, classifier: Classifier) -> dict[str, Any]:
        """Classes and confidences before, at the start and after, of the source, the target and whatever is predicted.
        A success: the prediction changes to the target."""
        if self.mode == "attribute":
            return self._measure_attribute(problem, pictures, clip_of(classifier))
        source, target = classifier.labels[problem.source], classifier.labels[problem.target]
        measured = measure_confidences(classifier, pictures, [problem.source, problem.target])
        return {**prediction_success(measured, target), "source": source, "target": target, **measured}

    @torch.no_grad()
    def _measure_attribute(self, problem: CounterfactualProblem, pictures: Images, clip: Embedder) -> dict[str, Any]:
        """The same of the two prompts, each called by its phrase."""
        names, prompts = (
            (problem.edit.source_words, problem.edit.target_words),
            (problem.edit.source, problem.edit.target),
        )
        images = torch.stack([pictures[name] for name in STAGES])
        similarity = clip.embed_images(images) @ clip.embed_texts(prompts).T
        measured = confidences_by_stage(
            (similarity / self._temperature(clip)).softmax(dim=-1).cpu(), names, range(len(names))
        )
        return {**prediction_success(measured, names[1]), "source": names[0], "target": names[1], **measured}

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Successes; with several seeds the mean spread of the target's confidence over a picture's answers."""
        by_picture: dict[str, list[float]] = {}
        for r in records:
            by_picture.setdefault(f"{r['picture']} {r['target']}", []).append(r["confidence_after"][r["target"]])
        spreads = [pstdev(values) for values in by_picture.values() if len(values) > 1]
        return success_counts(records) | ({"confidence_spread": fmean(spreads)} if spreads else {})
