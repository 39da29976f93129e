"""Input gradients (DiG-IN, Fig. 13): which pixels raise the probability of a class, under several test-time
augmentations. Nothing is optimized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Annotated, Any, NotRequired

from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.images import center_crop_resize
from classifier_lens.runner.configuration.value_ranges import DistanceWeights, OneOf
from classifier_lens.runner.protocols import Captioner, Classifier, Dataset, TaskInputs
from classifier_lens.runner.result_schema import (
    MASK,
    RESULT,
    START,
    ImageField,
    Label,
    Record,
    ResultImages,
    ResultSchema,
    StageFields,
)
from classifier_lens.runner.types import DISABLED_PROMPT_TO_PROMPT, Example, Objective, Reference, UserError
from classifier_lens.tasks.analysis.cam_share import PRESERVE_WITH_OBJECT_MASK, mean_by_key, object_region, share_inside
from classifier_lens.tasks.analysis.class_gradient import Augmentation, gradient_image, input_gradient, no_augmentation
from classifier_lens.tasks.analysis.predictions import measure_confidences
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.problems.counterfactual_problems import CounterfactualProblem
from classifier_lens.tasks.problems.image_problems import problems_of_images, unedited_image_fields
from classifier_lens.tasks.problems.problem_names import problem_seed, slug
from classifier_lens.tasks.prompts.target_rules import (
    RuleInputs,
    TargetRule,
    check_target_rule,
    resolve_class_name,
    targets,
    targets_per_image,
)

NO_AUGMENTATION = "none"  # the augmentation whose only view is the image


class InputGradientRecord(StageFields):
    """share_on_object: share of |gradient| on the object, and probability: mean over the views, by augmentation.
    Without a mask of the object there are no shares."""

    source: Annotated[str, Label("Source class")]
    target: Annotated[str, Label("Target")]
    share_on_object: NotRequired[Annotated[dict[str, float], Label("Share on the object")]]
    object_area: NotRequired[Annotated[float, Label("Share of the image that the object covers")]]
    probability: Annotated[dict[str, float], Label("Probability of the target")]


def gradient_field(augmentation: str) -> ImageField:
    """The image of the gradient under an augmentation."""
    name = "no augmentation" if augmentation == NO_AUGMENTATION else augmentation.replace("_", " ")
    return ImageField(f"gradient_{augmentation}", f"Gradient, {name}")


RESULT_SCHEMA = ResultSchema(
    "Input gradients",
    InputGradientRecord,
    images=[
        ImageField(RESULT.key, "Reconstruction"),
        ImageField(START.key, "Reconstruction"),
        ImageField(MASK.key, "Mask of the object"),
    ],
    images_by_record=lambda record: [gradient_field(augmentation) for augmentation in record["probability"]],
)


@dataclass
class InputGradients:
    """target: a rule of `target_rules`, a class or several; preserve: one of `cam_share.PRESERVE_WITH_OBJECT_MASK`, or
    `none` for no shares on the object; mask: a gray image, white where the object is, None for the segmenter's;
    augmentations: by name; weights: of the distances between image and reconstruction, which are the only terms."""

    target: TargetRule
    preserve: Annotated[str, OneOf((*PRESERVE_WITH_OBJECT_MASK, "none"))]
    mask: str | None
    augmentations: Mapping[str, Augmentation]
    weights: DistanceWeights
    captioner: Captioner

    baseline = "none"
    dependencies = ()
    prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT

    def __post_init__(self) -> None:
        if NO_AUGMENTATION in self.augmentations:
            raise UserError(
                f"task.augmentations.{NO_AUGMENTATION}: means the image without augmentation; choose another name"
            )

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_target_rule(self.target, classifier.labels)

    def problems(self, inputs: TaskInputs) -> tuple[list[CounterfactualProblem], int | None]:
        """One problem per image and target."""
        count = len(inputs.dataset)
        problems = problems_of_images(inputs.dataset, range(count), partial(self._image_problems, inputs))
        per_image = targets_per_image(self.target, inputs.classifier.labels)
        return list(islice(problems, inputs.limit)), None if per_image is None else count * per_image

    def _image_problems(self, inputs: TaskInputs, i: int, example: Example) -> Iterator[CounterfactualProblem]:
        """The problems of one image."""
        labels, side, seed = inputs.classifier.labels, inputs.generator.resolution, problem_seed(inputs.seed, i)
        label = resolve_class_name("data.label", example.label, labels)
        fields = unedited_image_fields(inputs.dataset, i, example, self.captioner, side, self.preserve, self.mask)
        square = replace(example, label=label, load=lambda: center_crop_resize(example.image, side))
        for target in targets(self.target, RuleInputs(square, inputs, seed)):
            yield CounterfactualProblem(
                name=f"{example.name}-{slug(target, labels)}", seed=seed, source=labels.index(label),
                target=labels.index(target), label_index=labels.index(label), **fields,
            )  # fmt: skip

    def objective(
        self, problems: Sequence[CounterfactualProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        """The distances: a generator only locates the object."""
        return distances(reference, self.weights)

    def gradients(
        self, problem: CounterfactualProblem, images: ResultImages, classifier: Classifier
    ) -> dict[str, tuple[Float[Tensor, "3 h w"], float]]:
        """The gradient and the mean probability by augmentation; all augmentations sample crops with the same seed."""
        return {
            name: input_gradient(classifier, images.before, problem.target, augmentation, problem.seed)
            for name, augmentation in {NO_AUGMENTATION: no_augmentation, **self.augmentations}.items()
        }

    def illustrate(
        self, problem: CounterfactualProblem, images: ResultImages, classifier: Classifier
    ) -> dict[ImageField, Float[Tensor, "c h w"]]:
        """The gradients as images: each divided by its largest absolute value, 0.5 where it is zero."""
        gradients = self.gradients(problem, images, classifier)
        return {gradient_field(name): gradient_image(gradient) for name, (gradient, _) in gradients.items()}

    def measure(
        self, problem: CounterfactualProblem, images: ResultImages, classifier: Classifier
    ) -> InputGradientRecord:
        """By augmentation the target's mean probability and, with a mask of the object, the share of |gradient| on it,
        next to the object's share of the image. Gradients are those of the saved image, not their 8-bit images."""
        gradients = self.gradients(problem, images, classifier)
        record: InputGradientRecord = {
            "source": classifier.labels[problem.source], "target": classifier.labels[problem.target],
            "probability": {name: probability for name, (_, probability) in gradients.items()},
            **measure_confidences(classifier, images, [problem.source, problem.target]),
        }  # fmt: skip
        if problem.preserve in PRESERVE_WITH_OBJECT_MASK:
            region = object_region(images, problem.preserve)
            record["share_on_object"] = {
                name: share_inside(gradient.abs().sum(dim=0), region) for name, (gradient, _) in gradients.items()
            }
            record["object_area"] = region.mean().item()
        return record

    def summarize(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Mean shares over the images with a mask of the object."""
        summary: dict[str, Any] = {"results": len(records)}
        with_object = [r for r in records if "share_on_object" in r]
        if with_object or not records:
            summary["share_on_object"] = mean_by_key([r["share_on_object"] for r in with_object])
            summary |= mean_by_key([{"object_area": r["object_area"]} for r in with_object])
        return summary
