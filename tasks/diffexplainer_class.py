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

from classifier_lens.data.image_selection import check_choice, content_of
from classifier_lens.runner.configuration.value_ranges import Names, OneOf, PromptWeights, Repeats
from classifier_lens.runner.protocols import Cache, Captioner, Classifier, Dataset, World
from classifier_lens.runner.types import Anchor, Edit, Objective, Pictures
from classifier_lens.tasks.analysis.activation_score import Rival, best_restarts, rivals_of, samples, score, surest
from classifier_lens.tasks.problems.image_problems import compared, own_seed, reading, slug, success_rate
from classifier_lens.tasks.problems.problem_checks import attempted
from classifier_lens.tasks.problems.prompt_problems import OBJECTIVES, Prompted, marked, prompt_objective
from classifier_lens.tasks.prompts.target_rules import known_labels
from classifier_lens.tasks.units.activation_ranking import choose_units, rank
from classifier_lens.tasks.units.addressing import FEATURES, Unit, activation


@dataclass(frozen=True, kw_only=True)
class Portrait(Prompted):
    """rivals: plain prompts by name."""

    rivals: Mapping[str, Rival]


class DiffExplainerClass:
    """training: pictures on which features are ranked, the most certain of which lends its caption; objective: of
    `OBJECTIVES`; classes: names, None for all; feature: the class's feature of this rank by mean contribution, of an
    objective with a unit; prompt: with free tokens, see `prompt_tuning.py`; seeds: restarts; images: pictures of each
    plain prompt; named: the class's plain prompt; weights: of the terms; baseline: see `runner.baselines.methods`."""

    def __init__(
        self, training: Dataset, objective: Annotated[str, OneOf(tuple(OBJECTIVES))], classes: Names | None,
        feature: Repeats, prompt: str, seeds: Repeats, images: Repeats, named: str, weights: PromptWeights,
        captioner: Captioner, cache: Cache, baseline: str,
    ) -> None:  # fmt: skip
        self.asked = check_choice("task.objective", objective, OBJECTIVES)
        self.feature, self.seeds = feature, seeds
        self.images = images
        self.training, self.classes, self.prompt, self.named = training, classes, prompt, named
        self.weights, self.captioner, self.cache, self.baseline = weights, captioner, cache, baseline
        self.schedules = {"inject": [0.0], "blend": [0.0]}
        self.networks = (training,)

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        known_labels("task.classes", self.classes, classifier.labels)

    def problems(self, world: World) -> tuple[list[Portrait], int | None]:
        """One problem per class and restart; the plain prompts of a class are tried once."""
        labels = world.classifier.labels
        names = known_labels("task.classes", self.classes, labels)
        named, unit = {"class name": self.named}, memoised(lambda label: self._unit(label, world))
        rivals = memoised(lambda c: rivals_of(c, world, named, self.training, self.captioner, self.images, self.cache))
        side = world.generator.resolution

        def example(label: str) -> Callable[[], Tensor]:
            row = surest(label, world, self.training, self.cache)
            return reading(self.training, row, content_of(self.training[row]), side)

        asked = [(label, k) for label, k in product(names, range(self.seeds))]

        def portrayed(name: str, label: str, k: int) -> list[Portrait]:
            return [Portrait(
                name=name, seed=own_seed(world.seed, labels.index(label), k), load=None,
                edit=Edit.unchanged(marked(self.prompt, label), label), picture=slug(label, labels), keep="none",
                draw=own_seed(world.seed, 0, k), objective=self.asked, target=labels.index(label), unit=unit(label),
                rivals=rivals(label), example=example(label),
            )]  # fmt: skip

        found = [
            problem for label, k in islice(asked, world.limit) for name in [f"{slug(label, labels)}-{k}"]
            for problem in attempted(name, partial(portrayed, name, label, k))
        ]  # fmt: skip
        return found, len(asked)

    def _unit(self, label: str, world: World) -> Unit | None:
        if "unit_activation" not in OBJECTIVES[self.asked]:
            return None
        side, classifier = world.generator.resolution, world.classifier
        units = f"class:{label}:{self.feature}"
        return choose_units(units, classifier, lambda: rank(classifier, FEATURES, self.training, side, self.cache))[-1]

    def objective(self, problems: Sequence[Portrait], anchor: Anchor, classifier: Classifier) -> Objective:
        return prompt_objective(problems, classifier, self.weights)

    def illustrate(self, problem: Portrait, pictures: Pictures, classifier: Classifier) -> dict[str, Tensor]:
        return {}

    def measure(self, problem: Portrait, pictures: Pictures, classifier: Classifier) -> dict[str, Any]:
        """The activation score on pictures of fresh z beside those of the plain prompts. A success: none of these has a
        higher one."""
        images = samples(pictures)
        own = score(classifier, list(images), problem.target)
        others = {name: r.record(own) for name, r in problem.rivals.items()}
        record = own.record() | {"target": classifier.labels[problem.target], "rivals": others}
        highest = max(r.score.share for r in problem.rivals.values())
        record["success"] = own.share >= highest
        record["criterion"] = compared(own.share, highest, "the highest activation score of a plain prompt")
        if problem.unit is not None:
            record |= {
                "unit": str(problem.unit),
                "activation": activation(classifier, images, problem.unit).mean().item(),
            }
        return record

    def summarise(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Per class the restart with the lowest loss, and how far restarts lie apart."""
        table = best_restarts(records)
        means = {"mean_activation_score": fmean(r["activation_score"] for r in table.values())} if table else {}
        return success_rate(records) | means | table
