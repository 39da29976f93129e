"""What a class is to a classifier: a prompt whose pictures it calls so, whatever the noise (DiffExplainer, Eq. 3-5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as memoised
from functools import partial
from itertools import islice, product
from statistics import fmean
from typing import Annotated, Any

from torch import Tensor

from classifier_lens.data.digests import hash_example
from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import Names, OneOf, PerProblemCount, PromptWeights
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, TaskInputs
from classifier_lens.runner.types import DISABLED_PROMPT_TO_PROMPT, CaptionEdit, Images, Objective, Reference
from classifier_lens.tasks.analysis.activation_score import (
    BaselinePrompt,
    best_restarts,
    measure_activation_score,
    most_confident_index,
    score_baseline_prompts,
    stack_result_images,
)
from classifier_lens.tasks.problems.image_problems import (
    comparison_text,
    image_loader,
    problem_seed,
    slug,
    success_counts,
)
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
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
    """baseline_prompts: plain prompts by name."""

    baseline_prompts: Mapping[str, BaselinePrompt]


class DiffExplainerClass:
    """training: pictures on which features are ranked, the most certain of which lends its caption; objective: of
    `OBJECTIVES`; classes: names, None for all; feature_rank: the class's feature of this rank by mean contribution, of
    an objective with a unit; prompt: with free tokens, see `prompt_tuning.py`; num_seeds: restarts; images_per_prompt:
    pictures of each plain prompt; class_name_prompt: the class's plain prompt; weights: of the terms; baseline: see
    `runner.baselines.methods`."""

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
        self.objective_name = check_choice("task.objective", objective, OBJECTIVES)
        self.feature_rank, self.num_seeds = feature_rank, num_seeds
        self.images_per_prompt = images_per_prompt
        self.training, self.classes, self.prompt, self.class_name_prompt = training, classes, prompt, class_name_prompt
        self.weights, self.captioner, self.cache, self.baseline = weights, captioner, cache, baseline
        self.prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT
        self.dependencies = (training,)

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        resolve_class_names("task.classes", self.classes, classifier.labels)

    def problems(self, world: TaskInputs) -> tuple[list[ClassPromptProblem], int | None]:
        """One problem per class and restart; the plain prompts of a class are tried once."""
        labels = world.classifier.labels
        names = resolve_class_names("task.classes", self.classes, labels)
        named, unit = {"class name": self.class_name_prompt}, memoised(lambda label: self._unit(label, world))
        rivals = memoised(
            lambda c: score_baseline_prompts(
                c, world, named, self.training, self.captioner, self.images_per_prompt, self.cache
            )
        )
        side = world.generator.resolution

        def example(label: str) -> Callable[[], Tensor]:
            row = most_confident_index(label, world, self.training, self.cache)
            return image_loader(self.training, row, hash_example(self.training[row]), side)

        asked = [(label, k) for label, k in product(names, range(self.num_seeds))]

        def portrayed(name: str, label: str, k: int) -> list[ClassPromptProblem]:
            return [
                ClassPromptProblem(
                    name=name,
                    seed=problem_seed(world.seed, labels.index(label), k),
                    load=None,
                    edit=CaptionEdit.unchanged(free_token_prompt(self.prompt, label), label),
                    image_name=slug(label, labels),
                    preserve="none",
                    init_seed=problem_seed(world.seed, 0, k),
                    objective=self.objective_name,
                    target=labels.index(label),
                    unit=unit(label),
                    baseline_prompts=rivals(label),
                    load_top_example=example(label),
                )
            ]

        found = [
            problem for label, k in islice(asked, world.limit) for name in [f"{slug(label, labels)}-{k}"]
            for problem in problems_or_failure(name, partial(portrayed, name, label, k))
        ]  # fmt: skip
        return found, len(asked)

    def _unit(self, label: str, world: TaskInputs) -> Unit | None:
        if "unit_activation" not in OBJECTIVES[self.objective_name]:
            return None
        side, classifier = world.generator.resolution, world.classifier
        units = f"class:{label}:{self.feature_rank}"
        return choose_units(
            units, classifier, lambda: rank_units(classifier, FEATURES, self.training, side, self.cache)
        )[-1]

    def objective(
        self, problems: Sequence[ClassPromptProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        return prompt_objective(problems, classifier, self.weights)

    def illustrate(self, problem: ClassPromptProblem, pictures: Images, classifier: Classifier) -> dict[str, Tensor]:
        return {}

    def measure(self, problem: ClassPromptProblem, pictures: Images, classifier: Classifier) -> dict[str, Any]:
        """The activation score on pictures of fresh z beside those of the plain prompts. A success: none of these has a
        higher one."""
        images = stack_result_images(pictures)
        own = measure_activation_score(classifier, list(images), problem.target)
        others = {name: r.record(own) for name, r in problem.baseline_prompts.items()}
        record = own.record() | {"target": classifier.labels[problem.target], "rivals": others}
        highest = max(r.score.value for r in problem.baseline_prompts.values())
        record["success"] = own.value >= highest
        record["criterion"] = comparison_text(own.value, highest, "the highest activation score of a plain prompt")
        if problem.unit is not None:
            record |= {
                "unit": str(problem.unit),
                "activation": activation(classifier, images, problem.unit).mean().item(),
            }
        return record

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Per class the restart with the lowest loss, and how far restarts lie apart."""
        table = best_restarts(records)
        means = {"mean_activation_score": fmean(r["activation_score"] for r in table.values())} if table else {}
        return success_counts(records) | means | table
