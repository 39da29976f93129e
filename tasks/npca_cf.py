"""NPCA counterfactuals (DiG-IN, App. G): a picture with more and with less of a class's neural principal component."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from typing import Annotated, Any

import torch
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
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, TaskInputs
from classifier_lens.runner.types import CaptionEdit, Example, Images, Objective, Problem, Reference, matching_indices
from classifier_lens.tasks.neuron_cf import DIRECTION_SIGNS
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.objectives.loss_terms import npca_contribution, saturation_levels
from classifier_lens.tasks.problems.image_problems import (
    STAGES,
    START_IMAGES,
    change_success,
    generated_image_fields,
    measure_confidences,
    problem_seed,
    problems_of_images,
    slug,
    start_indices,
    success_counts_by,
    unedited_image_fields,
)
from classifier_lens.tasks.problems.problem_checks import problems_or_failure
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

CACHED_CLASSES = 8  # classes whose components are held at once; others come from the cache


@dataclass(frozen=True, kw_only=True)
class ComponentCounterfactualProblem(Problem):
    """label: index of the class whose component is raised or lowered, as `direction` says; components: gives that
    class's, of which a run holds a few at a time: the square of the number of features for each class."""

    label: int
    component: int
    direction: str
    components: Callable[[], Components]


class NpcaCf:
    """components: see `npca.parse_components`; start_images: one of `START_IMAGES`; images_per_component: pictures per
    component; prompt: template of a drawn picture; min_change_std, saturation_std: in standard deviations of the
    component over the class's pictures in `training`; these and the rest as in `neuron_cf.NeuronCf`."""

    def __init__(
        self,
        training: Dataset,
        components: str | dict[str, list[Index]] | None,
        start_images: Annotated[str, OneOf(START_IMAGES)],
        images_per_component: PerProblemCount,
        directions: Directions,
        preserve: Preserve,
        mask: str | None,
        min_change_std: NonNegative,
        saturation_std: Positive | None,
        prompt: str,
        weights: ComponentWeights,
        prompt_to_prompt: PromptToPromptSteps,
        context_search: ContextSearch,
        captioner: Captioner,
        cache: Cache,
        baseline: str,
    ) -> None:
        self.start_images = check_choice("task.start_images", start_images, START_IMAGES)
        self.training, self.components, self.mask = training, components, mask
        self.images_per_component = images_per_component
        self.directions = [check_choice("task.directions", d, DIRECTION_SIGNS) for d in directions]
        self.preserve, self.min_change_std, self.saturation_std, self.prompt, self.weights = (
            preserve,
            min_change_std,
            saturation_std,
            prompt,
            weights,
        )
        self.captioner, self.cache, self.baseline = captioner, cache, baseline
        self.prompt_to_prompt, self.context_search = prompt_to_prompt, context_search
        self.dependencies = (training,)

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        parse_components(self.components, classifier)

    def problems(self, world: TaskInputs) -> tuple[list[ComponentCounterfactualProblem], int | None]:
        """One problem per component, picture and direction."""
        side, classifier = world.generator.resolution, world.classifier
        of = lru_cache(CACHED_CLASSES)(
            lambda label: class_components(classifier, label, self.training, side, self.cache)
        )
        pairs = parse_components(self.components, classifier)
        pairs = self._with_enough_images(pairs, world) if self.components is None else pairs
        starts = [
            (
                *pair,
                start_indices(world.dataset, pair[0], self.start_images, self.images_per_component, classifier.labels),
            )
            for pair in pairs
        ]
        asked = chain.from_iterable(
            self._component_problems(world, of, (label, number), rows) for label, number, rows in starts
        )
        return list(islice(asked, world.limit)), sum(len(rows) for _, _, rows in starts) * len(self.directions)

    def _with_enough_images(self, pairs: list[tuple[str, int]], world: TaskInputs) -> list[tuple[str, int]]:
        """Of every class's components those of classes that have images to make them of, and to start from; a line
        tells how many are left. All of them where none has: the first one's error says what is missing."""
        labels = world.classifier.labels
        wanted = [(self.training, MIN_IMAGES), *([(world.dataset, 1)] if self.start_images == "own" else [])]
        kept = [
            pair for pair in pairs
            if all(len(class_indices(data, pair[0], labels)) >= least for data, least in wanted)
        ]  # fmt: skip
        if 0 < len(kept) < len(pairs):
            print(f"{len(kept)} of {len(pairs)} classes have images; the others are left out", flush=True)
        return kept or pairs

    def _start_problems(
        self, world: TaskInputs, of: Callable[[str], Components], pair: tuple[str, int], row: int, image_label: str,
        given: dict[str, Any],
    ) -> Iterator[ComponentCounterfactualProblem]:  # fmt: skip
        """What is asked of one start."""
        (label, number), classifier = pair, world.classifier
        check_component(label, number, of(label))
        score, caption = partial(contribution, classifier, of(label), number), given["edit"].source
        shows = next(iter(matching_indices("data.label", image_label, classifier.labels)), None)

        def shifted(name: str, direction: str) -> list[ComponentCounterfactualProblem]:
            fields = given | self.context_search.search(
                caption, image_label, score, DIRECTION_SIGNS[direction], world, self.cache
            )
            return [ComponentCounterfactualProblem(
                name=name, seed=problem_seed(world.seed, row), label=classifier.labels.index(label), component=number,
                direction=direction, components=partial(of, label), mask_words=image_label, label_index=shows, **fields,
            )]  # fmt: skip

        for direction in self.directions:
            name = f"{given['image_name']}-{slug(label, classifier.labels)}-{number}-{direction}"
            yield from problems_or_failure(name, partial(shifted, name, direction))

    def _component_problems(
        self, world: TaskInputs, of: Callable[[str], Components], pair: tuple[str, int], rows: Iterable[int]
    ) -> Iterator[ComponentCounterfactualProblem]:  # fmt: skip
        """What is asked of a component's starts: of images by their positions, or of drawn ones."""
        side, ask = world.generator.resolution, partial(self._start_problems, world, of, pair)
        if self.start_images == "generated":
            for k in rows:
                yield from ask(k, pair[0], self._generated_fields(pair[0], k, side))
            return

        def started(row: int, example: Example) -> Iterator[ComponentCounterfactualProblem]:
            given = unedited_image_fields(world.dataset, row, example, self.captioner, side, self.preserve, self.mask)
            return ask(row, example.label, given)

        yield from problems_of_images(world.dataset, rows, started)

    def _generated_fields(self, label: str, k: int, side: int) -> dict[str, Any]:
        edit = CaptionEdit.unchanged(format_prompt(self.prompt, label), label)
        return {"edit": edit, **generated_image_fields(f"drawn-{k}", side, self.preserve, self.mask)}

    def objective(
        self, problems: Sequence[ComponentCounterfactualProblem], reference: Reference, classifier: Classifier
    ) -> Objective:
        """∓ α_l(x) and the two distances."""
        signs = torch.tensor([DIRECTION_SIGNS[p.direction] for p in problems])
        asked = [(p.components(), p.component) for p in problems]
        shown = zip(reference.original, asked, strict=True)
        before = (contribution(classifier, own, number, x[None]).item() for x, (own, number) in shown)
        enough = saturation_levels(self.saturation_std, before, signs, [own.std(number) for own, number in asked])
        term = npca_contribution(classifier, asked, signs, enough)
        return {"npca_contribution": (self.weights["npca_contribution"], term), **distances(reference, self.weights)}

    def illustrate(
        self, problem: ComponentCounterfactualProblem, pictures: Images, classifier: Classifier
    ) -> dict[str, Tensor]:
        return {}

    def measure(
        self, problem: ComponentCounterfactualProblem, pictures: Images, classifier: Classifier
    ) -> dict[str, Any]:
        """α_l before, at the start and after, and the confidence of the component's class."""
        own, label = problem.components(), classifier.labels[problem.label]
        shown = torch.stack([pictures[name] for name in STAGES])
        before, start, after = contribution(classifier, own, problem.component, shown).tolist()
        return {
            **change_success(
                before, after, own.std(problem.component), DIRECTION_SIGNS[problem.direction], self.min_change_std
            ),
            "source": label,
            "target": f"{label} {problem.component} {problem.direction}",
            "component": problem.component,
            "direction": problem.direction,
            "contribution_before": before,
            "contribution_start": start,
            "contribution_after": after,
            "training_std": own.std(problem.component),
            **measure_confidences(classifier, pictures, [problem.label]),
        }

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Successes per direction."""
        return success_counts_by("direction", records)
