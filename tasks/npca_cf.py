"""Principal-component counterfactuals (NPCA; DiG-IN, App. G): an image changed to contribute more, and less, to a
neural principal component of a class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import (
    ComponentWeights,
    Directions,
    Index,
    NonNegative,
    OneOf,
    PerProblemCount,
    Positive,
    Preserve,
    PromptToPromptSteps,
)
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, HasDigest, TaskInputs
from classifier_lens.runner.result_schema import (
    RESULT,
    ImageField,
    Label,
    Record,
    ResultImages,
    ResultSchema,
    StageFields,
    SuccessFields,
    SummaryFields,
)
from classifier_lens.runner.types import CaptionEdit, Example, Objective, Problem, Reference, matching_indices
from classifier_lens.tasks.analysis.predictions import measure_confidences
from classifier_lens.tasks.analysis.success import DIRECTION_SIGNS, change_success, success_counts_by
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.objectives.loss_terms import npca_contribution, saturation_levels
from classifier_lens.tasks.problems.image_problems import (
    START_IMAGES,
    generated_image_fields,
    problems_of_images,
    start_indices,
    unedited_image_fields,
)
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
from classifier_lens.tasks.problems.problem_names import problem_seed, slug
from classifier_lens.tasks.prompts.caption_edit import format_prompt
from classifier_lens.tasks.prompts.context_search import ContextSearch
from classifier_lens.tasks.prompts.target_rules import class_indices
from classifier_lens.tasks.units.npca import (
    MIN_IMAGES,
    Components,
    check_component,
    class_components,
    contribution,
    parse_components,
)

CACHED_CLASSES = 8  # classes whose components are in memory; others are read from the cache again


@dataclass(frozen=True, kw_only=True)
class ComponentCounterfactualProblem(Problem):
    """label: index of the component's class; component: its number; direction: one of `DIRECTION_SIGNS`; components:
    reads the class's components, which take the square of the number of features, so that a run holds only those of a
    few classes."""

    label: int
    component: int
    direction: str
    components: Callable[[], Components]


class ComponentCounterfactualRecord(SuccessFields, StageFields):
    """source: the component's class; contribution_…: α_l."""

    source: Annotated[str, Label("Source class")]
    target: Annotated[str, Label("Target")]
    component: Annotated[int, Label("Component")]
    direction: Annotated[str, Label("Direction")]
    contribution_before: Annotated[float, Label("Contribution before")]
    contribution_start: Annotated[float, Label("Contribution at the start")]
    contribution_after: Annotated[float, Label("Contribution after")]
    training_std: Annotated[float, Label("Standard deviation over training images")]


RESULT_SCHEMA = ResultSchema(
    "Principal-component counterfactuals (NPCA)",
    ComponentCounterfactualRecord,
    images=[ImageField(RESULT.key, "Counterfactual")],
)


@dataclass
class NpcaCf:
    """training: images from which components are computed; components: see `npca.parse_components`; start_images: one
    of `START_IMAGES`; images_per_component: images per component; directions: of `DIRECTION_SIGNS`; preserve, mask: see
    `Problem`; min_change_std: change of a success, and saturation_std: change at which α_l is clamped (None for no
    limit), in standard deviations over the class's images in `training`; prompt: template of generated images; weights:
    of the terms; prompt_to_prompt: replaces the generator's; context_search: of the start's caption; cache: stores
    components and the images of the context search; baseline: see `runner.baselines.methods`."""

    training: Dataset
    components: str | dict[str, list[Index]] | None
    start_images: Annotated[str, OneOf(START_IMAGES)]
    images_per_component: PerProblemCount
    directions: Directions
    preserve: Preserve
    mask: str | None
    min_change_std: NonNegative
    saturation_std: Positive | None
    prompt: str
    weights: ComponentWeights
    prompt_to_prompt: PromptToPromptSteps
    context_search: ContextSearch
    captioner: Captioner
    cache: Cache
    baseline: str

    def __post_init__(self) -> None:
        check_choice("task.start_images", self.start_images, START_IMAGES)
        for direction in self.directions:
            check_choice("task.directions", direction, DIRECTION_SIGNS)

    @property
    def dependencies(self) -> Sequence[HasDigest]:
        return (self.training,)

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        parse_components(self.components, classifier)

    def problems(self, inputs: TaskInputs) -> tuple[list[ComponentCounterfactualProblem], int | None]:
        """One problem per component, image and direction."""
        side, classifier = inputs.generator.resolution, inputs.classifier
        components_of = lru_cache(CACHED_CLASSES)(
            lambda label: class_components(classifier, label, self.training, side, self.cache)
        )
        pairs = parse_components(self.components, classifier)
        if self.components is None:
            pairs = self._with_enough_images(pairs, inputs)
        rows = [
            start_indices(inputs.dataset, label, self.start_images, self.images_per_component, classifier.labels)
            for label, _ in pairs
        ]
        problems = chain.from_iterable(
            self._component_problems(inputs, components_of, pair, pair_rows)
            for pair, pair_rows in zip(pairs, rows, strict=True)
        )
        return list(islice(problems, inputs.limit)), sum(map(len, rows)) * len(self.directions)

    def _with_enough_images(self, pairs: list[tuple[str, int]], inputs: TaskInputs) -> list[tuple[str, int]]:
        """The components of classes that have enough images to compute them and to start from; a printed line tells how
        many are left. All components if no class has, so that the first one's error says what is missing."""
        labels = inputs.classifier.labels
        requirements = [(self.training, MIN_IMAGES)]
        if self.start_images == "own":
            requirements.append((inputs.dataset, 1))
        sufficient = [
            (label, number) for label, number in pairs
            if all(len(class_indices(data, label, labels)) >= count for data, count in requirements)
        ]  # fmt: skip
        if 0 < len(sufficient) < len(pairs):
            print(f"{len(sufficient)} of {len(pairs)} classes have enough images; the others are skipped", flush=True)
        return sufficient or pairs

    def _component_problems(
        self, inputs: TaskInputs, components_of: Callable[[str], Components], pair: tuple[str, int], rows: Iterable[int]
    ) -> Iterator[ComponentCounterfactualProblem]:
        """The problems of a component: of images at the given positions, or of as many generated ones."""
        (label, _), side = pair, inputs.generator.resolution
        make_problems = partial(self._start_problems, inputs, components_of, pair)
        if self.start_images == "generated":
            for k in rows:
                yield from make_problems(k, label, self._generated_fields(label, k, side))
            return

        def image_problems(row: int, example: Example) -> Iterator[ComponentCounterfactualProblem]:
            fields = unedited_image_fields(inputs.dataset, row, example, self.captioner, side, self.preserve, self.mask)
            return make_problems(row, example.label, fields)

        yield from problems_of_images(inputs.dataset, rows, image_problems)

    def _generated_fields(self, label: str, k: int, side: int) -> dict[str, Any]:
        edit = CaptionEdit.unchanged(format_prompt(self.prompt, label), label)
        return {"edit": edit, **generated_image_fields(f"generated-{k}", side, self.preserve, self.mask)}

    def _start_problems(
        self, inputs: TaskInputs, components_of: Callable[[str], Components], pair: tuple[str, int], row: int,
        image_label: str, fields: Mapping[str, Any],
    ) -> Iterator[ComponentCounterfactualProblem]:  # fmt: skip
        """The problems of a component and one image. image_label: the class that the image shows."""
        (label, number), classifier = pair, inputs.classifier
        check_component(label, number, components_of(label))
        score, caption = partial(contribution, classifier, components_of(label), number), fields["edit"].source
        label_index = next(iter(matching_indices("data.label", image_label, classifier.labels)), None)

        def make_problem(name: str, direction: str) -> list[ComponentCounterfactualProblem]:
            sign = DIRECTION_SIGNS[direction]
            start = self.context_search.search(caption, image_label, score, sign, inputs, self.cache)
            edited = {**fields, "edit": start.edit, "editable_from_noise": start.editable_from_noise}
            return [ComponentCounterfactualProblem(
                name=name, seed=problem_seed(inputs.seed, row), label=classifier.labels.index(label), component=number,
                direction=direction, components=partial(components_of, label), mask_words=image_label,
                label_index=label_index, **edited,
            )]  # fmt: skip

        for direction in self.directions:
            name = f"{fields['image_name']}-{slug(label, classifier.labels)}-{number}-{direction}"
            yield from problems_or_failure(name, partial(make_problem, name, direction))

    def objective(
        self, problems: Sequence[ComponentCounterfactualProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        """∓ α_l(x) and the two distances."""
        signs = torch.tensor([DIRECTION_SIGNS[p.direction] for p in problems])
        components = [(p.components(), p.component) for p in problems]
        before = (
            contribution(classifier, basis, number, original[None]).item()
            for original, (basis, number) in zip(reference.original, components, strict=True)
        )
        stds = [basis.std(number) for basis, number in components]
        term = npca_contribution(
            classifier, components, signs, saturation_levels(self.saturation_std, before, signs, stds)
        )
        return {"npca_contribution": (self.weights["npca_contribution"], term), **distances(reference, self.weights)}

    def illustrate(
        self, problem: ComponentCounterfactualProblem, images: ResultImages, classifier: Classifier
    ) -> dict[ImageField, Float[Tensor, "c h w"]]:
        return {}

    def measure(
        self, problem: ComponentCounterfactualProblem, images: ResultImages, classifier: Classifier
    ) -> ComponentCounterfactualRecord:
        """α_l and the confidence in the component's class. A result is a success if α_l changes by `min_change_std`
        standard deviations in its direction."""
        components, label = problem.components(), classifier.labels[problem.label]
        std = components.std(problem.component)
        values = contribution(classifier, components, problem.component, torch.stack(images.stages))
        before, start, after = values.tolist()
        return {
            **change_success(before, after, std, DIRECTION_SIGNS[problem.direction], self.min_change_std),
            "source": label,
            "target": f"{label} {problem.component} {problem.direction}",
            "component": problem.component,
            "direction": problem.direction,
            "contribution_before": before,
            "contribution_start": start,
            "contribution_after": after,
            "training_std": std,
            **measure_confidences(classifier, images, [problem.label]),
        }

    def summarize(self, records: Sequence[Record]) -> dict[str, SummaryFields]:
        """Successes per direction."""
        return success_counts_by("direction", records)
