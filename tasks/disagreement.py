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
from classifier_lens.runner.configuration.value_ranges import Fraction, Names, NonNegative, OneOf, Repeats
from classifier_lens.runner.protocols import Classifier, Dataset, World
from classifier_lens.runner.types import Anchor, Edit, Objective, Pictures, Problem, UserError
from classifier_lens.tasks.analysis.retrieval import Retrieval, same_disagreement
from classifier_lens.tasks.objectives.loss_terms import GAPS, confidence_gap
from classifier_lens.tasks.problems.image_problems import compared, probabilities, slug, success_by
from classifier_lens.tasks.problems.problem_checks import attempted
from classifier_lens.tasks.prompts.caption_edit import prompt_of
from classifier_lens.tasks.prompts.start_search import start_words, strongest_gap
from classifier_lens.tasks.prompts.target_rules import known_labels

DIRECTIONS = {"over": 1.0, "under": -1.0}  # the classifier sees more of the class than its rival, or less


@dataclass(frozen=True, kw_only=True)
class Dispute(Problem):
    """target: class index; direction: one of `DIRECTIONS`."""

    target: int
    direction: str


class Disagreement:
    """rival: the other classifier, with the same labels; mode: one of `terms.GAPS`; margin: so much of it is enough;
    classes: names, or None for all; directions: of `DIRECTIONS`; seeds: pictures per class and direction; starts:
    start latents tried for each and for each word, the best of which is optimised; words: "own", "all" or names: the
    classes whose prompt a picture may start from; phrases: what may follow a class's name there, None for nothing;
    prompt: template of the start; gap: what p_f − p_g has to reach for
    a success; validate: where real pictures are looked for, None for nowhere."""

    def __init__(
        self, rival: Classifier, mode: Annotated[str, OneOf(tuple(GAPS))], margin: NonNegative, classes: Names | None,
        directions: Annotated[Sequence[Annotated[str, OneOf(tuple(DIRECTIONS))]], MinLen(1)], seeds: Repeats,
        starts: Repeats, words: str | Names, phrases: Names | None, prompt: str, gap: Fraction,
        baseline: str, validate: Retrieval | None,
    ) -> None:  # fmt: skip
        self.mode, self.margin = check_choice("task.mode", mode, GAPS), margin
        self.directions = [check_choice("task.directions", d, DIRECTIONS) for d in directions]
        self.seeds, self.starts = seeds, starts
        self.rival, self.classes, self.words = rival, classes, words
        self.phrases, self.prompt, self.gap = phrases or ("",), prompt, gap
        self.baseline, self.validate, self.captioner = baseline, validate or None, None
        self.networks = (rival,) if self.validate is None else (rival, self.validate)
        self.schedules = {"inject": [0.0], "blend": [0.0]}

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        labels, rival = classifier.labels, self.rival
        domains = {rival.domain, classifier.domain} - {None}
        if rival.labels != labels or len(domains) > 1:
            raise UserError(
                f"rival: knows {len(rival.labels)} classes of the domain {rival.domain}, the classifier {len(labels)} "
                f"of {classifier.domain}; both must know the same classes in the same order"
            )
        known_labels("task.classes", self.classes, labels)
        start_words(self.words, labels)

    def problems(self, world: World) -> tuple[list[Dispute], int | None]:
        """One problem per class, seed and direction."""
        self.check(world.classifier, world.dataset)
        labels, rival = world.classifier.labels, self.rival
        classes = known_labels("task.classes", self.classes, labels)
        asked = list(product(classes, range(self.seeds), self.directions))
        words = start_words(self.words, labels)
        begin = strongest_gap(world, rival, self.prompt, words, self.phrases, self.starts)

        def disputed(label: str, k: int, direction: str) -> list[Dispute]:
            start, picture = begin(label, k, DIRECTIONS[direction]), f"{slug(label, labels)}-{k}"
            return [Dispute(
                name=f"{picture}-{direction}", picture=picture, seed=start.seed,
                edit=Edit.unchanged(start.prompt, start.name), load=None, keep="none",
                claim=(start.prompt, labels.index(start.word)),
                target=labels.index(label), direction=direction,
            )]  # fmt: skip

        found = (
            problem for label, k, direction in islice(asked, world.limit)
            for problem in attempted(f"{slug(label, labels)}-{k}-{direction}", partial(disputed, label, k, direction))
        )  # fmt: skip
        return list(found), len(asked)

    def objective(self, problems: Sequence[Dispute], anchor: Anchor, classifier: Classifier) -> Objective:
        targets = torch.tensor([p.target for p in problems])
        signs = torch.tensor([DIRECTIONS[p.direction] for p in problems])
        return {"disagreement": (1.0, confidence_gap(self.mode, classifier, self.rival, targets, signs, self.margin))}

    def illustrate(self, problem: Dispute, pictures: Pictures, classifier: Classifier) -> dict[str, Tensor]:
        """The nearest real pictures to the best one, and to the class's prompt."""
        if self.validate is None:
            return {}
        prompt = prompt_of(self.prompt, classifier.labels[problem.target])
        return self.validate.pictures(pictures["best"], prompt)

    def measure(self, problem: Dispute, pictures: Pictures, classifier: Classifier) -> dict[str, Any]:
        """Both confidences in the class before and after, the gap p_f − p_g of the direction asked, both predictions;
        and how many of the real pictures found show the same disagreement: one calls them so and the other does not."""
        label, sign = classifier.labels[problem.target], DIRECTIONS[problem.direction]
        shown = [pictures["before"], pictures["best"]]
        ours, theirs = probabilities(classifier, shown), probabilities(self.rival, shown)
        before, after = ((ours - theirs)[:, problem.target] * sign).tolist()
        record: dict[str, Any] = {
            "success": after >= self.gap,
            "criterion": compared(after, self.gap, "the gap between both confidences that is wanted"),
            "target": label, "direction": problem.direction,
            "gap_before": before, "gap_after": after,
            "predicted_before": classifier.labels[int(ours[0].argmax())],
            "predicted_after": classifier.labels[int(ours[1].argmax())],
            "rival_predicted_after": classifier.labels[int(theirs[1].argmax())],
            "confidence_before": {label: ours[0, problem.target].item()},
            "confidence_after": {label: ours[1, problem.target].item()},
            "rival_confidence_before": theirs[0, problem.target].item(),
            "rival_confidence_after": theirs[1, problem.target].item(),
        }  # fmt: skip
        return record | same_disagreement(pictures, classifier, self.rival, problem.target, sign)

    def summarise(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Successes in each direction."""
        return success_by("direction", records)
