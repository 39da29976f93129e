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
    Keep,
    NonNegative,
    OneOf,
    Positive,
    Repeats,
    Schedule,
)
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, World
from classifier_lens.runner.types import Anchor, Edit, Example, Objective, Pictures, Problem, matching_rows
from classifier_lens.tasks.neuron_cf import SIGNS
from classifier_lens.tasks.objectives.distances import distances
from classifier_lens.tasks.objectives.loss_terms import ends, npca_contribution
from classifier_lens.tasks.problems.image_problems import (
    STAGES,
    STARTS,
    asked_of,
    confidences,
    drawn,
    moved_by,
    own_seed,
    slug,
    starts_of,
    success_by,
    unchanged,
)
from classifier_lens.tasks.problems.problem_checks import attempted
from classifier_lens.tasks.prompts.caption_edit import prompt_of
from classifier_lens.tasks.prompts.context_search import Surroundings
from classifier_lens.tasks.prompts.target_rules import rows_of_class
from classifier_lens.tasks.units.npca import (
    MADE_OF,
    Components,
    check_component,
    components,
    contribution,
    read_components,
)

HELD = 8  # classes whose components are held at once; others come from the cache


@dataclass(frozen=True, kw_only=True)
class Shift(Problem):
    """label: index of the class whose component is raised or lowered, as `direction` says; components: gives that
    class's, of which a run holds a few at a time: the square of the number of features for each class."""

    label: int
    component: int
    direction: str
    components: Callable[[], Components]


class NpcaCf:
    """components: see `components.read_components`; start: one of `STARTS`; images: pictures per component; prompt:
    template of a drawn picture; moved, enough: in standard deviations of the component over the class's pictures in
    `training`; these and the rest as in `neuron_cf.NeuronCf`."""

    def __init__(
        self, training: Dataset, components: str | dict[str, list[Index]] | None,
        start: Annotated[str, OneOf(STARTS)], images: Repeats, directions: Directions, keep: Keep, mask: str | None,
        moved: NonNegative, enough: Positive | None, prompt: str,
        weights: ComponentWeights, schedules: Schedule, surroundings: Surroundings,
        captioner: Captioner, cache: Cache, baseline: str,
    ) -> None:  # fmt: skip
        self.start = check_choice("task.start", start, STARTS)
        self.training, self.components, self.mask = training, components, mask
        self.images = images
        self.directions = [check_choice("task.directions", d, SIGNS) for d in directions]
        self.keep, self.moved, self.enough, self.prompt, self.weights = keep, moved, enough, prompt, weights
        self.captioner, self.cache, self.baseline = captioner, cache, baseline
        self.schedules, self.surroundings = schedules, surroundings
        self.networks = (training,)

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        read_components(self.components, classifier)

    def problems(self, world: World) -> tuple[list[Shift], int | None]:
        """One problem per component, picture and direction."""
        side, classifier = world.generator.resolution, world.classifier
        of = lru_cache(HELD)(lambda label: components(classifier, label, self.training, side, self.cache))
        pairs = read_components(self.components, classifier)
        pairs = self._with_images(pairs, world) if self.components is None else pairs
        starts = [
            (*pair, starts_of(world.dataset, pair[0], self.start, self.images, classifier.labels)) for pair in pairs
        ]
        asked = chain.from_iterable(self._started(world, of, (label, number), rows) for label, number, rows in starts)
        return list(islice(asked, world.limit)), sum(len(rows) for _, _, rows in starts) * len(self.directions)

    def _with_images(self, pairs: list[tuple[str, int]], world: World) -> list[tuple[str, int]]:
        """Of every class's components those of classes that have images to make them of, and to start from; a line
        tells how many are left. All of them where none has: the first one's error says what is missing."""
        labels = world.classifier.labels
        wanted = [(self.training, MADE_OF), *([(world.dataset, 1)] if self.start == "own" else [])]
        kept = [
            pair for pair in pairs
            if all(len(rows_of_class(data, pair[0], labels)) >= least for data, least in wanted)
        ]  # fmt: skip
        if 0 < len(kept) < len(pairs):
            print(f"{len(kept)} of {len(pairs)} classes have images; the others are left out", flush=True)
        return kept or pairs

    def _asked(
        self, world: World, of: Callable[[str], Components], pair: tuple[str, int], row: int, shown: str,
        given: dict[str, Any],
    ) -> Iterator[Shift]:  # fmt: skip
        """What is asked of one start."""
        (label, number), classifier = pair, world.classifier
        check_component(label, number, of(label))
        score, caption = partial(contribution, classifier, of(label), number), given["edit"].source
        shows = next(iter(matching_rows("data.label", shown, classifier.labels)), None)

        def shifted(name: str, direction: str) -> list[Shift]:
            fields = given | self.surroundings.start(caption, shown, score, SIGNS[direction], world, self.cache)
            return [Shift(
                name=name, seed=own_seed(world.seed, row), label=classifier.labels.index(label), component=number,
                direction=direction, components=partial(of, label), words=shown, shows=shows, **fields,
            )]  # fmt: skip

        for direction in self.directions:
            name = f"{given['picture']}-{slug(label, classifier.labels)}-{number}-{direction}"
            yield from attempted(name, partial(shifted, name, direction))

    def _started(
        self, world: World, of: Callable[[str], Components], pair: tuple[str, int], rows: Iterable[int]
    ) -> Iterator[Shift]:  # fmt: skip
        """What is asked of a component's starts: of images by their positions, or of drawn ones."""
        side, ask = world.generator.resolution, partial(self._asked, world, of, pair)
        if self.start == "generated":
            for k in rows:
                yield from ask(k, pair[0], self._drawn(pair[0], k, side))
            return

        def started(row: int, example: Example) -> Iterator[Shift]:
            given = unchanged(world.dataset, row, example, self.captioner, side, self.keep, self.mask)
            return ask(row, example.label, given)

        yield from asked_of(world.dataset, rows, started)

    def _drawn(self, label: str, k: int, side: int) -> dict[str, Any]:
        edit = Edit.unchanged(prompt_of(self.prompt, label), label)
        return {"edit": edit, **drawn(f"drawn-{k}", side, self.keep, self.mask)}

    def objective(self, problems: Sequence[Shift], anchor: Anchor, classifier: Classifier) -> Objective:
        """∓ α_l(x) and the two distances."""
        signs = torch.tensor([SIGNS[p.direction] for p in problems])
        asked = [(p.components(), p.component) for p in problems]
        shown = zip(anchor.original, asked, strict=True)
        before = (contribution(classifier, own, number, x[None]).item() for x, (own, number) in shown)
        enough = ends(self.enough, before, signs, [own.std(number) for own, number in asked])
        term = npca_contribution(classifier, asked, signs, enough)
        return {"npca_contribution": (self.weights["npca_contribution"], term), **distances(anchor, self.weights)}

    def illustrate(self, problem: Shift, pictures: Pictures, classifier: Classifier) -> dict[str, Tensor]:
        return {}

    def measure(self, problem: Shift, pictures: Pictures, classifier: Classifier) -> dict[str, Any]:
        """α_l before, at the start and after, and the confidence of the component's class."""
        own, label = problem.components(), classifier.labels[problem.label]
        shown = torch.stack([pictures[name] for name in STAGES])
        before, start, after = contribution(classifier, own, problem.component, shown).tolist()
        return {
            **moved_by(before, after, own.std(problem.component), SIGNS[problem.direction], self.moved),
            "source": label, "target": f"{label} {problem.component} {problem.direction}",
            "component": problem.component, "direction": problem.direction,
            "contribution_before": before, "contribution_start": start, "contribution_after": after,
            "training_std": own.std(problem.component),
            **confidences(classifier, pictures, [problem.label]),
        }  # fmt: skip

    def summarise(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Successes per direction."""
        return success_by("direction", records)
