"""Maximal disagreement (DiG-IN, Section 4, Eq. 3): images that one classifier predicts as a class and another does
not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from typing import Annotated

import torch
from annotated_types import MinLen
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import Fraction, Names, NonNegative, OneOf, PerProblemCount
from classifier_lens.runner.protocols import Classifier, Dataset, HasDigest, TaskInputs
from classifier_lens.runner.result_schema import (
    ImageField,
    Label,
    Record,
    ResultImages,
    ResultSchema,
    SuccessFields,
    SummaryFields,
)
from classifier_lens.runner.types import (
    DISABLED_PROMPT_TO_PROMPT,
    CaptionEdit,
    Objective,
    Problem,
    Reference,
    UserError,
)
from classifier_lens.tasks.analysis.predictions import probabilities
from classifier_lens.tasks.analysis.retrieval import (
    IMAGE_NEIGHBORS,
    TEXT_NEIGHBORS,
    NeighborCounts,
    Retrieval,
    count_disagreeing_neighbors,
)
from classifier_lens.tasks.analysis.success import comparison_text, success_counts_by
from classifier_lens.tasks.objectives.loss_terms import CONFIDENCE_MEASURES, confidence_gap
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
from classifier_lens.tasks.problems.problem_names import slug
from classifier_lens.tasks.prompts.caption_edit import format_prompt
from classifier_lens.tasks.prompts.start_search import largest_gap_search, parse_start_classes
from classifier_lens.tasks.prompts.target_rules import resolve_class_names

# Which classifier should be more confident of the class: the first one (over), or the second one (under).
DIRECTION_SIGNS = {"over": 1.0, "under": -1.0}


@dataclass(frozen=True, kw_only=True)
class DisagreementProblem(Problem):
    """target: class index; direction: one of `DIRECTION_SIGNS`."""

    target: int
    direction: str


class DisagreementRecord(SuccessFields, NeighborCounts):
    """gap_before, gap_after: p_f − p_g in the direction of the problem; second_…: of the second classifier;
    confidences: in the target."""

    target: Annotated[str, Label("Target")]
    direction: Annotated[str, Label("Direction")]
    gap_before: Annotated[float, Label("Confidence gap before")]
    gap_after: Annotated[float, Label("Confidence gap after")]
    predicted_before: str
    predicted_after: str
    second_predicted_after: str
    confidence_before: dict[str, float]
    confidence_after: dict[str, float]
    second_confidence_before: float
    second_confidence_after: float


RESULT_SCHEMA = ResultSchema(
    "Maximal disagreement of two classifiers", DisagreementRecord, series=[IMAGE_NEIGHBORS, TEXT_NEIGHBORS]
)


@dataclass
class Disagreement:
    """rival: the second classifier, with the same classes; mode: one of `loss_terms.CONFIDENCE_MEASURES`;
    margin_saturation: see `loss_terms.confidence_gap`; classes: target classes, None for all; directions: of
    `DIRECTION_SIGNS`; num_seeds: images per class and direction; num_initializations: start latents per image and
    prompt, of which the one with the largest gap is optimized; start_classes: "own", "all" or names: classes whose
    prompt an image may start from; context_phrases: phrases that may follow the class name there, None for none;
    prompt: template of the start prompt; min_confidence_gap: p_f − p_g of a success; baseline: see
    `runner.baselines.methods`; retrieval: search for similar real images, None for no search."""

    rival: Classifier
    mode: Annotated[str, OneOf(tuple(CONFIDENCE_MEASURES))]
    margin_saturation: NonNegative
    classes: Names | None
    directions: Annotated[Sequence[Annotated[str, OneOf(tuple(DIRECTION_SIGNS))]], MinLen(1)]
    num_seeds: PerProblemCount
    num_initializations: PerProblemCount
    start_classes: str | Names
    context_phrases: Names | None
    prompt: str
    min_confidence_gap: Fraction
    baseline: str
    retrieval: Retrieval | None

    captioner = None
    prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT

    def __post_init__(self) -> None:
        check_choice("task.mode", self.mode, CONFIDENCE_MEASURES)
        for direction in self.directions:
            check_choice("task.directions", direction, DIRECTION_SIGNS)

    @property
    def dependencies(self) -> Sequence[HasDigest]:
        return (self.rival,) if not self.retrieval else (self.rival, self.retrieval)

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        labels, second = classifier.labels, self.rival
        domains = {second.domain, classifier.domain} - {None}
        if second.labels != labels or len(domains) > 1:
            raise UserError(
                f"rival: has {len(second.labels)} classes of the domain {second.domain}, the classifier {len(labels)} "
                f"of {classifier.domain}; both need the same classes in the same order"
            )
        resolve_class_names("task.classes", self.classes, labels)
        parse_start_classes(self.start_classes, labels)

    def problems(self, inputs: TaskInputs) -> tuple[list[DisagreementProblem], int | None]:
        """One problem per class, seed and direction."""
        self.check(inputs.classifier, inputs.dataset)
        labels = inputs.classifier.labels
        search_start = largest_gap_search(
            inputs, self.rival, self.prompt, parse_start_classes(self.start_classes, labels),
            self.context_phrases or ("",), self.num_initializations,
        )  # fmt: skip

        def make_problem(label: str, k: int, direction: str) -> list[DisagreementProblem]:
            start, image_name = search_start(label, k, DIRECTION_SIGNS[direction]), f"{slug(label, labels)}-{k}"
            return [DisagreementProblem(
                name=f"{image_name}-{direction}", image_name=image_name, seed=start.seed,
                edit=CaptionEdit.unchanged(start.prompt, start.phrase), load=None, preserve="none",
                prompt_check=(start.prompt, labels.index(start.class_name)),
                target=labels.index(label), direction=direction,
            )]  # fmt: skip

        classes = resolve_class_names("task.classes", self.classes, labels)
        combinations = list(product(classes, range(self.num_seeds), self.directions))
        problems = [
            problem
            for label, k, direction in islice(combinations, inputs.limit)
            for problem in problems_or_failure(
                f"{slug(label, labels)}-{k}-{direction}", partial(make_problem, label, k, direction)
            )
        ]
        return problems, len(combinations)

    def objective(
        self, problems: Sequence[DisagreementProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        targets = torch.tensor([p.target for p in problems])
        signs = torch.tensor([DIRECTION_SIGNS[p.direction] for p in problems])
        term = confidence_gap(self.mode, classifier, self.rival, targets, signs, self.margin_saturation)
        return {"disagreement": (1.0, term)}

    def illustrate(
        self, problem: DisagreementProblem, images: ResultImages, classifier: Classifier
    ) -> dict[ImageField, Float[Tensor, "c h w"]]:
        """The real images nearest to the result and to the class's prompt."""
        if not self.retrieval:
            return {}
        prompt = format_prompt(self.prompt, classifier.labels[problem.target])
        return self.retrieval.nearest_images(images.result, prompt)

    def measure(self, problem: DisagreementProblem, images: ResultImages, classifier: Classifier) -> DisagreementRecord:
        """Both classifiers' predictions and confidences in the target before and after optimization, and the number of
        retrieved images with the same disagreement. A result is a success if its gap reaches `min_confidence_gap`."""
        label, sign = classifier.labels[problem.target], DIRECTION_SIGNS[problem.direction]
        first, second = (probabilities(network, [images.before, images.result]) for network in (classifier, self.rival))
        gap_before, gap_after = ((first - second)[:, problem.target] * sign).tolist()
        return {
            "success": gap_after >= self.min_confidence_gap,
            "criterion": comparison_text(gap_after, self.min_confidence_gap, "the required gap of both confidences"),
            "target": label,
            "direction": problem.direction,
            "gap_before": gap_before,
            "gap_after": gap_after,
            "predicted_before": classifier.labels[int(first[0].argmax())],
            "predicted_after": classifier.labels[int(first[1].argmax())],
            "second_predicted_after": classifier.labels[int(second[1].argmax())],
            "confidence_before": {label: first[0, problem.target].item()},
            "confidence_after": {label: first[1, problem.target].item()},
            "second_confidence_before": second[0, problem.target].item(),
            "second_confidence_after": second[1, problem.target].item(),
            **count_disagreeing_neighbors(images, classifier, self.rival, problem.target, sign),
        }

    def summarize(self, records: Sequence[Record]) -> dict[str, SummaryFields]:
        """Successes per direction."""
        return success_counts_by("direction", records)
