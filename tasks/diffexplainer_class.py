"""Class explanations (DiffExplainer, Eq. 3-5): a prompt whose generated images are predicted as a class for any
noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as memoized
from functools import partial
from itertools import islice, product
from statistics import fmean
from typing import Annotated, Any, NotRequired, TypedDict

from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.digests import hash_example
from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import Names, OneOf, PerProblemCount, PromptWeights
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, HasDigest, TaskInputs
from classifier_lens.runner.result_schema import (
    RESULT,
    START,
    ImageField,
    Label,
    Record,
    ResultImages,
    ResultSchema,
    SuccessFields,
)
from classifier_lens.runner.types import DISABLED_PROMPT_TO_PROMPT, CaptionEdit, Objective, Reference
from classifier_lens.tasks.analysis.activation_score import (
    BaselinePrompt,
    BaselinePromptRecord,
    BaselinePrompts,
    RestartSummary,
    ScoreFields,
    best_restarts,
    measure_activation_score,
    most_confident_index,
    score_baseline_prompts,
    stack_result_images,
)
from classifier_lens.tasks.analysis.success import comparison_text, success_counts
from classifier_lens.tasks.problems.image_problems import image_loader
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
from classifier_lens.tasks.problems.problem_names import problem_seed, slug
from classifier_lens.tasks.problems.prompt_problems import (
    OBJECTIVES,
    PromptProblem,
    free_token_prompt,
    prompt_objective,
)
from classifier_lens.tasks.prompts.target_rules import resolve_class_names
from classifier_lens.tasks.units.activation_ranking import choose_units, rank_units
from classifier_lens.tasks.units.addressing import FEATURES, Unit, activation


@dataclass(frozen=True, kw_only=True)
class ClassPromptProblem(PromptProblem):
    """baseline_prompts: prompts that are not optimized, by name, see `score_baseline_prompts`."""

    baseline_prompts: Mapping[str, BaselinePrompt]


class ClassPromptRecord(SuccessFields, ScoreFields):
    """unit, activation: of objectives with a unit; the mean over the images."""

    target: Annotated[str, Label("Target")]
    baseline_prompts: Annotated[dict[str, BaselinePromptRecord], Label("Baseline prompts")]
    unit: NotRequired[Annotated[str, Label("Unit")]]
    activation: NotRequired[Annotated[float, Label("Activation")]]


class ClassPromptSummary(TypedDict, total=False):
    """mean_activation_score: of the best restart of each class."""

    mean_activation_score: Annotated[float, Label("Mean activation score")]


RESULT_SCHEMA = ResultSchema(
    "Class explanations (DiffExplainer)",
    ClassPromptRecord,
    rows=[BaselinePrompts, BaselinePromptRecord],
    summary=[ClassPromptSummary, RestartSummary],
    images=[
        ImageField(RESULT.key, "Image of the optimized prompt"),
        ImageField(START.key, "Image of the initial prompt"),
    ],
)


class DiffExplainerClass:
    """Optimization of one prompt per class and restart."""

    prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT

    def __init__(
        self,
        training: Dataset,
        objective: Annotated[str, OneOf(tuple(OBJECTIVES))],
        classes: Names | None,
        feature_rank: PerProblemCount,
        prompt: str,
        num_seeds: PerProblemCount,
        images_per_prompt: PerProblemCount,
        class_name_prompt: str,
        weights: PromptWeights,
        captioner: Captioner,
        cache: Cache,
        baseline: str,
    ) -> None:
        """training: images on which features are ranked; the caption of the most confident one is a baseline prompt;
        objective: one of `OBJECTIVES`; classes: names, None for all; feature_rank: for objectives with a unit, the
        class's feature of this rank by mean contribution; prompt: template with free tokens, see `prompt_tuning.py`;
        num_seeds: restarts per class; images_per_prompt: images of each baseline prompt; class_name_prompt: template of
        the baseline prompt with the class name; weights: of the terms; cache: stores rankings and the baseline prompts'
        images; baseline: see `runner.baselines.methods`."""
        self.objective_name = check_choice("task.objective", objective, OBJECTIVES)
        self.training, self.classes, self.feature_rank = training, classes, feature_rank
        self.prompt, self.num_seeds = prompt, num_seeds
        self.images_per_prompt, self.class_name_prompt = images_per_prompt, class_name_prompt
        self.weights, self.captioner, self.cache, self.baseline = weights, captioner, cache, baseline

    @property
    def dependencies(self) -> Sequence[HasDigest]:
        return (self.training,)

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        resolve_class_names("task.classes", self.classes, classifier.labels)

    def problems(self, inputs: TaskInputs) -> tuple[list[ClassPromptProblem], int | None]:
        """One problem per class and restart."""
        labels = inputs.classifier.labels
        fields = memoized(lambda label: self._class_fields(label, inputs))

        def make_problem(name: str, label: str, k: int) -> list[ClassPromptProblem]:
            return [
                ClassPromptProblem(
                    name=name,
                    seed=problem_seed(inputs.seed, labels.index(label), k),
                    init_seed=problem_seed(inputs.seed, 0, k),
                    load=None,
                    preserve="none",
                    **fields(label),
                )
            ]

        classes = resolve_class_names("task.classes", self.classes, labels)
        restarts = list(product(classes, range(self.num_seeds)))
        problems = [
            problem for label, k in islice(restarts, inputs.limit) for name in [f"{slug(label, labels)}-{k}"]
            for problem in problems_or_failure(name, partial(make_problem, name, label, k))
        ]  # fmt: skip
        return problems, len(restarts)

    def _class_fields(self, label: str, inputs: TaskInputs) -> dict[str, Any]:
        """The fields that a class's problems share."""
        labels = inputs.classifier.labels
        return {
            "edit": CaptionEdit.unchanged(free_token_prompt(self.prompt, label), label),
            "image_name": slug(label, labels),
            "objective": self.objective_name,
            "target": labels.index(label),
            "unit": self._unit(label, inputs),
            "baseline_prompts": score_baseline_prompts(
                label, inputs, self.class_name_prompt, self.training, self.captioner, self.images_per_prompt, self.cache
            ),
            "load_top_example": self._top_example_loader(label, inputs),
        }

    def _unit(self, label: str, inputs: TaskInputs) -> Unit | None:
        """The class's feature of the rank `feature_rank`, None if the objective needs none."""
        if "unit_activation" not in OBJECTIVES[self.objective_name]:
            return None
        side, classifier = inputs.generator.resolution, inputs.classifier
        units = choose_units(
            f"class:{label}:{self.feature_rank}",
            classifier,
            lambda: rank_units(classifier, FEATURES, self.training, side, self.cache),
        )
        return units[-1]

    def _top_example_loader(self, label: str, inputs: TaskInputs) -> Callable[[], Float[Tensor, "3 h w"]]:
        """A function that reads the training image with the highest confidence in the class."""
        row = most_confident_index(label, inputs, self.training, self.cache)
        return image_loader(self.training, row, hash_example(self.training[row]), inputs.generator.resolution)

    def objective(
        self, problems: Sequence[ClassPromptProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        return prompt_objective(problems, classifier, self.weights)

    def illustrate(
        self, problem: ClassPromptProblem, images: ResultImages, classifier: Classifier
    ) -> dict[ImageField, Float[Tensor, "c h w"]]:
        return {}

    def measure(self, problem: ClassPromptProblem, images: ResultImages, classifier: Classifier) -> ClassPromptRecord:
        """The activation scores of the optimized prompt, on images of new noise, and of the baseline prompts. A result
        is a success if no baseline prompt has a higher score."""
        stack = stack_result_images(images)
        score = measure_activation_score(classifier, list(stack), problem.target)
        highest = max(prompt.score.value for prompt in problem.baseline_prompts.values())
        record: ClassPromptRecord = {
            **score.record(),
            "target": classifier.labels[problem.target],
            "baseline_prompts": {name: prompt.record(score) for name, prompt in problem.baseline_prompts.items()},
            "success": score.value >= highest,
            "criterion": comparison_text(score.value, highest, "the highest activation score of a baseline prompt"),
        }
        if problem.unit is not None:
            record["unit"] = str(problem.unit)
            record["activation"] = activation(classifier, stack, problem.unit).mean().item()
        return record

    def summarize(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Successes, and the restarts of each class."""
        restarts = best_restarts(records)
        summary: ClassPromptSummary = {}
        if restarts:
            summary["mean_activation_score"] = fmean(row["activation_score"] for row in restarts.values())
        return {**success_counts(records), **summary, **restarts}
