"""Which pixels speak for a class, under several test-time augmentations (DiG-IN, Fig. 13). Nothing is optimised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Annotated, Any

from torch import Tensor

from classifier_lens.data.images import center_crop_resize
from classifier_lens.runner.configuration.value_ranges import DistanceWeights, OneOf
from classifier_lens.runner.protocols import Captioner, Classifier, Dataset, TaskInputs
from classifier_lens.runner.types import DISABLED_PROMPT_TO_PROMPT, Example, Images, Objective, Reference, UserError
from classifier_lens.tasks.analysis.cam_share import PRESERVE_WITH_OBJECT_MASK, mean_by_key, object_region, share_inside
from classifier_lens.tasks.analysis.class_gradient import Augmentation, gradient_image, input_gradient, no_augmentation
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem
from classifier_lens.tasks.problems.image_problems import (
    measure_confidences,
    problem_seed,
    problems_of_images,
    slug,
    unedited_image_fields,
)
from classifier_lens.tasks.prompts.target_rules import (
    RuleInputs,
    TargetRule,
    check_target_rule,
    resolve_class_name,
    targets,
    targets_per_image,
)

UNAUGMENTED = "none"  # the name of the picture itself as the only view


class InputGradients:
    """target: a rule of `target_rules`, a class or several; preserve: one of `cam_share.PRESERVE_WITH_OBJECT_MASK`, or
    `none` where no object is looked for; mask: a picture, white where the object is, None for the segmenter's;
    augmentations: by name; weights: of the distances between picture and reconstruction, which are all there is to an
    answer's value."""

    baseline = "none"

    def __init__(
        self,
        target: TargetRule,
        preserve: Annotated[str, OneOf((*PRESERVE_WITH_OBJECT_MASK, "none"))],
        mask: str | None,
        augmentations: Mapping[str, Augmentation],
        weights: DistanceWeights,
        captioner: Captioner,
    ) -> None:
        if UNAUGMENTED in augmentations:
            raise UserError(
                f"task.augmentations.{UNAUGMENTED}: is the picture itself, give the augmentation another name"
            )
        self.augmentations, self.target, self.preserve, self.mask = augmentations, target, preserve, mask
        self.weights, self.captioner = weights, captioner
        self.dependencies = ()
        self.prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_target_rule(self.target, classifier.labels)

    def problems(self, world: TaskInputs) -> tuple[list[CounterfactualProblem], int | None]:
        """One problem per picture and target."""
        every = range(len(world.dataset))
        found = list(
            islice(problems_of_images(world.dataset, every, partial(self._image_problems, world)), world.limit)
        )
        per_picture = targets_per_image(self.target, world.classifier.labels)
        return found, None if per_picture is None else len(world.dataset) * per_picture

    def _image_problems(self, world: TaskInputs, i: int, example: Example) -> Iterator[CounterfactualProblem]:
        """What is asked of one image."""
        labels, side, seed = world.classifier.labels, world.generator.resolution, problem_seed(world.seed, i)
        label = resolve_class_name("data.label", example.label, labels)
        fields = unedited_image_fields(world.dataset, i, example, self.captioner, side, self.preserve, self.mask)
        shown = replace(example, label=label, load=lambda: center_crop_resize(example.image, side))
        for target in targets(self.target, RuleInputs(shown, world, seed)):
            yield CounterfactualProblem(
                name=f"{example.name}-{slug(target, labels)}", seed=seed, source=labels.index(label),
                target=labels.index(target), label_index=labels.index(label), **fields,
            )  # fmt: skip

    def objective(
        self, problems: Sequence[CounterfactualProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        """The distances: a generator only finds the object."""
        return distances(reference, self.weights)

    def gradients(
        self, problem: CounterfactualProblem, pictures: Images, classifier: Classifier
    ) -> dict[str, tuple[Tensor, float]]:
        """By the augmentation's name, what `input_gradient` gives; all of them see crops of the same draw."""
        return {
            name: input_gradient(classifier, pictures["before"], problem.target, augmentation, problem.seed)
            for name, augmentation in {UNAUGMENTED: no_augmentation, **self.augmentations}.items()
        }

    def illustrate(self, problem: CounterfactualProblem, pictures: Images, classifier: Classifier) -> dict[str, Tensor]:
        """The gradients as pictures: each divided by its largest absolute value, 0.5 where it is zero."""
        found = self.gradients(problem, pictures, classifier)
        return {f"gradient-{name}": gradient_image(gradient) for name, (gradient, _) in found.items()}

    def measure(self, problem: CounterfactualProblem, pictures: Images, classifier: Classifier) -> dict[str, Any]:
        """By augmentation the target's mean probability and, where an object is looked for, the share of |gradient| on
        it, beside its share of the picture (`area`). Gradients are those of the saved picture, not their own 8-bit
        pictures."""
        found = self.gradients(problem, pictures, classifier)
        shares: dict[str, Any] = {}
        if problem.preserve in PRESERVE_WITH_OBJECT_MASK:
            region = object_region(pictures, problem.preserve)
            within = {name: share_inside(gradient.abs().sum(dim=0), region) for name, (gradient, _) in found.items()}
            shares = {"within": within, "area": region.mean().item()}
        return {
            "source": classifier.labels[problem.source], "target": classifier.labels[problem.target],
            **shares,
            "probability": {name: probability for name, (_, probability) in found.items()},
            **measure_confidences(classifier, pictures, [problem.source, problem.target]),
        }  # fmt: skip

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Mean shares over the images, where an object was looked for."""
        known = [r for r in records if "within" in r]
        shares = {
            "within": mean_by_key([r["within"] for r in known]),
            **mean_by_key([{"area": r["area"]} for r in known]),
        }
        return {"answers": len(records)} | (shares if known or not records else {})
