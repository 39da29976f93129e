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

from classifier_lens.data.image_folder import square
from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import EditWeights, Keep, Keys, OneOf, Positive, Repeats
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, Embedder, World
from classifier_lens.runner.types import Anchor, Example, Objective, Pictures, UserError
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.objectives.loss_terms import class_log_prob, text_log_prob
from classifier_lens.tasks.problems.counterfactual_problems import QUESTIONS, Flip, Wish, embedder_of
from classifier_lens.tasks.problems.image_problems import (
    STAGES,
    asked_of,
    confidences,
    own_seed,
    reaches,
    slug,
    stages,
    start,
    success_rate,
)
from classifier_lens.tasks.prompts.context_search import Surroundings
from classifier_lens.tasks.prompts.target_rules import Choice, Rule, check_rule, count_of, known_label


class Uvce:
    """mode: one of `flips.QUESTIONS`; target: a rule of `target_rules`, a class or several, in the mode `class`;
    attribute: {source, target} phrases, in the mode `attribute`; temperature: of its softmax over the two prompts, None
    for the CLIP model's own; seeds: answers per picture; prompt: template of a class's own picture;
    surroundings: the search for words to start with, in the mode `error`; weights: of the objective's terms (w_VAE =
    25, w_PX = 250 in D.1.5); baseline: see `runner.baselines.methods`; cache: keeps the words' pictures."""

    def __init__(
        self, mode: Annotated[str, OneOf(tuple(QUESTIONS))], target: Rule,
        attribute: Annotated[Mapping[str, str], Keys(("source", "target", "words"))],
        temperature: Positive | None, keep: Keep, mask: str | None, seeds: Repeats, baseline: str, weights: EditWeights,
        surroundings: Surroundings,
        captioner: Captioner, prompt: str, cache: Cache,
    ) -> None:  # fmt: skip
        self.mode = check_choice("task.mode", mode, QUESTIONS)
        self.wish, self.captioner = Wish(target, attribute, prompt, captioner, surroundings, cache), captioner
        self.temperature, self.keep, self.mask = temperature, keep, mask
        self.seeds = seeds
        self.baseline, self.weights, self.networks = baseline, weights, ()
        # An error's caption names the true class already. Where nothing else changes, there are no maps to inject.
        self.schedules = {"inject": [0.0]} if mode == "error" and surroundings.phrases is None else {}

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        if self.mode == "attribute":
            embedder_of(classifier)
        if self.mode == "class":
            check_rule(self.wish.target, classifier.labels)

    def problems(self, world: World) -> tuple[list[Flip], int | None]:
        """One problem per picture, question and seed, in the data set's order; only those within the limit are made.
        How many there are in all is only known where every picture asks the same number of questions."""
        self.check(world.classifier, world.dataset)
        per_picture = count_of(self.wish.target, world.classifier.labels) if self.mode == "class" else None
        every = range(len(world.dataset))
        found = list(islice(asked_of(world.dataset, every, partial(self._asked, world)), world.limit))
        if not found:
            raise UserError(f"task.mode={self.mode}: none of the {len(world.dataset)} pictures asks this question")
        return found, None if per_picture is None else len(world.dataset) * per_picture * self.seeds

    def _asked(self, world: World, i: int, example: Example) -> Iterator[Flip]:
        """What is asked of one image."""
        labels, side = world.classifier.labels, world.generator.resolution
        fields = start(world.dataset, i, example, side, self.keep, self.mask)
        label = known_label("data.label", example.label, labels)
        shown = replace(example, label=label, load=lambda: square(example.image, side))
        choice = Choice(shown, world, own_seed(world.seed, i))
        for question in QUESTIONS[self.mode](choice, self.wish):
            for k in range(self.seeds):
                yield Flip(
                    name=f"{example.name}-{slug(question.name, labels)}" + (f"-{k}" if self.seeds > 1 else ""),
                    seed=own_seed(world.seed, i, k), edit=question.edit, source=question.source,
                    target=question.target, claim=question.claim, words=question.words, redrawn=question.redrawn,
                    shows=labels.index(label) if question.shows is None else question.shows, **fields,
                )  # fmt: skip

    def objective(self, problems: Sequence[Flip], anchor: Anchor, classifier: Classifier) -> Objective:
        """−log p(y|x), of the classifier's classes or of the two prompts, and the two distances of Eq. 4."""
        wanted = torch.tensor([p.target for p in problems])
        term = class_log_prob(classifier, wanted)
        if self.mode == "attribute":
            clip = embedder_of(classifier)
            texts = torch.stack([clip.embed_texts([p.edit.source, p.edit.target]) for p in problems])
            term = text_log_prob(clip, texts, wanted, self._temperature(clip))
        return {"class_log_prob": (self.weights["class_log_prob"], term), **distances(anchor, self.weights)}

    def _temperature(self, clip: Embedder) -> float:
        return 1 / clip.scale if self.temperature is None else self.temperature

    def illustrate(self, problem: Flip, pictures: Pictures, classifier: Classifier) -> dict[str, Tensor]:
        return {}

    def measure(self, problem: Flip, pictures: Pictures, classifier: Classifier) -> dict[str, Any]:
        """Classes and confidences before, at the start and after, of the source, the target and whatever is predicted.
        A success: the prediction changes to the target."""
        if self.mode == "attribute":
            return self._measure_attribute(problem, pictures, embedder_of(classifier))
        source, target = classifier.labels[problem.source], classifier.labels[problem.target]
        measured = confidences(classifier, pictures, [problem.source, problem.target])
        return {**reaches(measured, target), "source": source, "target": target, **measured}

    @torch.no_grad()
    def _measure_attribute(self, problem: Flip, pictures: Pictures, clip: Embedder) -> dict[str, Any]:
        """The same of the two prompts, each called by its phrase."""
        names, prompts = (
            (problem.edit.source_words, problem.edit.target_words),
            (problem.edit.source, problem.edit.target),
        )
        images = torch.stack([pictures[name] for name in STAGES])
        similarity = clip.embed_images(images) @ clip.embed_texts(prompts).T
        measured = stages((similarity / self._temperature(clip)).softmax(dim=-1).cpu(), names, range(len(names)))
        return {**reaches(measured, names[1]), "source": names[0], "target": names[1], **measured}

    def summarise(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Successes; with several seeds the mean spread of the target's confidence over a picture's answers."""
        by_picture: dict[str, list[float]] = {}
        for r in records:
            by_picture.setdefault(f"{r['picture']} {r['target']}", []).append(r["confidence_after"][r["target"]])
        spreads = [pstdev(values) for values in by_picture.values() if len(values) > 1]
        return success_rate(records) | ({"confidence_spread": fmean(spreads)} if spreads else {})
