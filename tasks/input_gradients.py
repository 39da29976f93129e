"""Which pixels speak for a class, under several test-time augmentations (DiG-IN, Fig. 13). Nothing is optimised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Annotated, Any

from torch import Tensor

from classifier_lens.data.image_folder import square
from classifier_lens.runner.configuration.value_ranges import DistanceWeights, OneOf
from classifier_lens.runner.protocols import Captioner, Classifier, Dataset, World
from classifier_lens.runner.types import Anchor, Example, Objective, Pictures, UserError
from classifier_lens.tasks.analysis.cam_share import KEPT, averages, object_region, share_within
from classifier_lens.tasks.analysis.class_gradient import Augmentation, input_gradient, shown, whole
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.problems.counterfactual_problems import Flip
from classifier_lens.tasks.problems.image_problems import asked_of, confidences, own_seed, slug, unchanged
from classifier_lens.tasks.prompts.target_rules import Choice, Rule, check_rule, count_of, known_label, targets

PLAIN = "none"  # the name of the picture itself as the only view


class InputGradients:
    """target: a rule of `target_rules`, a class or several; keep: one of `shares.KEPT`, or `none` where no object is
    looked for; mask: a picture, white where the object is, None for the segmenter's; augmentations: by name; weights:
    of the distances between picture and reconstruction, which are all there is to an answer's value."""

    baseline = "none"

    def __init__(
        self, target: Rule, keep: Annotated[str, OneOf((*KEPT, "none"))], mask: str | None,
        augmentations: Mapping[str, Augmentation], weights: DistanceWeights, captioner: Captioner,
    ) -> None:  # fmt: skip
        if PLAIN in augmentations:
            raise UserError(f"task.augmentations.{PLAIN}: is the picture itself, give the augmentation another name")
        self.augmentations, self.target, self.keep, self.mask = augmentations, target, keep, mask
        self.weights, self.captioner = weights, captioner
        self.networks = ()
        self.schedules = {"inject": [0.0], "blend": [0.0]}

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_rule(self.target, classifier.labels)

    def problems(self, world: World) -> tuple[list[Flip], int | None]:
        """One problem per picture and target."""
        every = range(len(world.dataset))
        found = list(islice(asked_of(world.dataset, every, partial(self._asked, world)), world.limit))
        per_picture = count_of(self.target, world.classifier.labels)
        return found, None if per_picture is None else len(world.dataset) * per_picture

    def _asked(self, world: World, i: int, example: Example) -> Iterator[Flip]:
        """What is asked of one image."""
        labels, side, seed = world.classifier.labels, world.generator.resolution, own_seed(world.seed, i)
        label = known_label("data.label", example.label, labels)
        fields = unchanged(world.dataset, i, example, self.captioner, side, self.keep, self.mask)
        shown = replace(example, label=label, load=lambda: square(example.image, side))
        for target in targets(self.target, Choice(shown, world, seed)):
            yield Flip(
                name=f"{example.name}-{slug(target, labels)}", seed=seed, source=labels.index(label),
                target=labels.index(target), shows=labels.index(label), **fields,
            )  # fmt: skip

    def objective(self, problems: Sequence[Flip], anchor: Anchor, classifier: Classifier) -> Objective:
        """The distances: a generator only finds the object."""
        return distances(anchor, self.weights)

    def gradients(self, problem: Flip, pictures: Pictures, classifier: Classifier) -> dict[str, tuple[Tensor, float]]:
        """By the augmentation's name, what `input_gradient` gives; all of them see crops of the same draw."""
        return {
            name: input_gradient(classifier, pictures["before"], problem.target, augmentation, problem.seed)
            for name, augmentation in {PLAIN: whole, **self.augmentations}.items()
        }

    def illustrate(self, problem: Flip, pictures: Pictures, classifier: Classifier) -> dict[str, Tensor]:
        """The gradients as pictures: each divided by its largest absolute value, 0.5 where it is zero."""
        found = self.gradients(problem, pictures, classifier)
        return {f"gradient-{name}": shown(gradient) for name, (gradient, _) in found.items()}

    def measure(self, problem: Flip, pictures: Pictures, classifier: Classifier) -> dict[str, Any]:
        """By augmentation the target's mean probability and, where an object is looked for, the share of |gradient| on
        it, beside its share of the picture (`area`). Gradients are those of the saved picture, not their own 8-bit
        pictures."""
        found = self.gradients(problem, pictures, classifier)
        shares: dict[str, Any] = {}
        if problem.keep in KEPT:
            region = object_region(pictures, problem.keep)
            within = {name: share_within(gradient.abs().sum(dim=0), region) for name, (gradient, _) in found.items()}
            shares = {"within": within, "area": region.mean().item()}
        return {
            "source": classifier.labels[problem.source], "target": classifier.labels[problem.target],
            **shares,
            "probability": {name: probability for name, (_, probability) in found.items()},
            **confidences(classifier, pictures, [problem.source, problem.target]),
        }  # fmt: skip

    def summarise(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Mean shares over the images, where an object was looked for."""
        known = [r for r in records if "within" in r]
        shares = {
            "within": averages([r["within"] for r in known]),
            **averages([{"area": r["area"]} for r in known]),
        }
        return {"answers": len(records)} | (shares if known or not records else {})
