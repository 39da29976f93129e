"""Maximal disagreement (DiG-IN, Section 4, Eq. 3): pictures that one classifier calls y and another does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from torch import Tensor

from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import Fraction, Names, NonNegative, OneOf, PerProblemCount
from classifier_lens.runner.protocols import Classifier, Dataset, TaskInputs
from classifier_lens.runner.types import (
    DISABLED_PROMPT_TO_PROMPT,
    CaptionEdit,
    Images,
    Objective,
    Problem,
    Reference,
    UserError,
)
from classifier_lens.tasks.analysis.retrieval import Retrieval, count_disagreeing_neighbors
from classifier_lens.tasks.objectives.loss_terms import CONFIDENCE_MEASURES, confidence_gap
from classifier_lens.tasks.problems.image_problems import comparison_text, probabilities, slug, success_counts_by
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
from classifier_lens.tasks.prompts.caption_edit import format_prompt
from classifier_lens.tasks.prompts.start_search import largest_gap_search, parse_start_classes
from classifier_lens.tasks.prompts.target_rules import resolve_class_names

DIRECTION_SIGNS = {"over": 1.0, "under": -1.0}  # the classifier sees more of the class than its rival, or less


@dataclass(frozen=True, kw_only=True)
class DisagreementProblem(Problem):
    """target: class index; direction: one of `DIRECTION_SIGNS`."""

    target: int
    direction: str


class Disagreement:
    """rival: the other classifier, with the same labels; mode: one of `loss_terms.CONFIDENCE_MEASURES`;
    margin_saturation: so much of it is enough; classes: names, or None for all; directions: of `DIRECTION_SIGNS`;
    num_seeds: pictures per class and direction; num_initializations: start latents tried for each and for each word,
    the best of which is optimised; start_classes: "own", "all" or names: the classes whose prompt a picture may start
    from; context_phrases: what may follow a class's name there, None for nothing; prompt: template of the start;
    min_confidence_gap: what p_f − p_g has to reach for a success; retrieval: where real pictures are looked for, None
    for nowhere."""

    def __init__(
        self,
        rival: Classifier,
        mode: Annotated[str, OneOf(tuple(CONFIDENCE_MEASURES))],
        margin_saturation: NonNegative,
        classes: Names | None,
        directions: Annotated[Sequence[Annotated[str, OneOf(tuple(DIRECTION_SIGNS))]], MinLen(1)],
        num_seeds: PerProblemCount,
        num_initializations: PerProblemCount,
        start_classes: str | Names,
        context_phrases: Names | None,
        prompt: str,
        min_confidence_gap: Fraction,
        baseline: str,
        retrieval: Retrieval | None,
    ) -> None:
        self.mode, self.margin_saturation = check_choice("task.mode", mode, CONFIDENCE_MEASURES), margin_saturation
        self.directions = [check_choice("task.directions", d, DIRECTION_SIGNS) for d in directions]
        self.num_seeds, self.num_initializations = num_seeds, num_initializations
        self.rival, self.classes, self.start_classes = rival, classes, start_classes
        self.context_phrases, self.prompt, self.min_confidence_gap = (
            context_phrases or ("",),
            prompt,
            min_confidence_gap,
        )
        self.baseline, self.retrieval, self.captioner = baseline, retrieval or None, None
        self.dependencies = (rival,) if self.retrieval is None else (rival, self.retrieval)
        self.prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        labels, rival = classifier.labels, self.rival
        domains = {rival.domain, classifier.domain} - {None}
        if rival.labels != labels or len(domains) > 1:
            raise UserError(
                f"rival: knows {len(rival.labels)} classes of the domain {rival.domain}, the classifier {len(labels)} "
                f"of {classifier.domain}; both must know the same classes in the same order"
            )
        resolve_class_names("task.classes", self.classes, labels)
        parse_start_classes(self.start_classes, labels)

    def problems(self, world: TaskInputs) -> tuple[list[DisagreementProblem], int | None]:
        """One problem per class, seed and direction."""
        self.check(world.classifier, world.dataset)
        labels, rival = world.classifier.labels, self.rival
        classes = resolve_class_names("task.classes", self.classes, labels)
        asked = list(product(classes, range(self.num_seeds), self.directions))
        words = parse_start_classes(self.start_classes, labels)
        begin = largest_gap_search(world, rival, self.prompt, words, self.context_phrases, self.num_initializations)

        def disputed(label: str, k: int, direction: str) -> list[DisagreementProblem]:
            start, picture = begin(label, k, DIRECTION_SIGNS[direction]), f"{slug(label, labels)}-{k}"
            return [DisagreementProblem(
                name=f"{picture}-{direction}", image_name=picture, seed=start.seed,
                edit=CaptionEdit.unchanged(start.prompt, start.phrase), load=None, preserve="none",
                prompt_check=(start.prompt, labels.index(start.class_name)),
                target=labels.index(label), direction=direction,
            )]  # fmt: skip

        found = (
            problem
            for label, k, direction in islice(asked, world.limit)
            for problem in problems_or_failure(
                f"{slug(label, labels)}-{k}-{direction}", partial(disputed, label, k, direction)
            )
        )
        return list(found), len(asked)

    def objective(
        self, problems: Sequence[DisagreementProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        targets = torch.tensor([p.target for p in problems])
        signs = torch.tensor([DIRECTION_SIGNS[p.direction] for p in problems])
        return {
            "disagreement": (
                1.0,
                confidence_gap(self.mode, classifier, self.rival, targets, signs, self.margin_saturation),
            )
        }

    def illustrate(self, problem: DisagreementProblem, pictures: Images, classifier: Classifier) -> dict[str, Tensor]:
        """The nearest real pictures to the best one, and to the class's prompt."""
        if self.retrieval is None:
            return {}
        prompt = format_prompt(self.prompt, classifier.labels[problem.target])
        return self.retrieval.nearest_images(pictures["best"], prompt)

    def measure(self, problem: DisagreementProblem, pictures: Images, classifier: Classifier) -> dict[str, Any]:
        """Both confidences in the class before and after, the gap p_f − p_g of the direction asked, both predictions;
        and how many of the real pictures found show the same disagreement: one calls them so and the other does not."""
        label, sign = classifier.labels[problem.target], DIRECTION_SIGNS[problem.direction]
        shown = [pictures["before"], pictures["best"]]
        ours, theirs = probabilities(classifier, shown), probabilities(self.rival, shown)
        before, after = ((ours - theirs)[:, problem.target] * sign).tolist()
        record: dict[str, Any] = {
            "success": after >= self.min_confidence_gap,
            "criterion": comparison_text(
                after, self.min_confidence_gap, "the gap between both confidences that is wanted"
            ),
            "target": label,
            "direction": problem.direction,
            "gap_before": before,
            "gap_after": after,
            "predicted_before": classifier.labels[int(ours[0].argmax())],
            "predicted_after": classifier.labels[int(ours[1].argmax())],
            "rival_predicted_after": classifier.labels[int(theirs[1].argmax())],
            "confidence_before": {label: ours[0, problem.target].item()},
            "confidence_after": {label: ours[1, problem.target].item()},
            "rival_confidence_before": theirs[0, problem.target].item(),
            "rival_confidence_after": theirs[1, problem.target].item(),
        }
        return record | count_disagreeing_neighbors(pictures, classifier, self.rival, problem.target, sign)

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Successes in each direction."""
        return success_counts_by("direction", records)
