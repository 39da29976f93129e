"""Which of a class's most important features look at the object, and which at something else (DiffExplainer, Section
3.3): the share of the pictures of a feature's prompt that a segmenter gives to the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache as memoised
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from annotated_types import MinLen
from torch import Tensor

from classifier_lens.data.image_selection import NamedFiles, check_choice, content_of
from classifier_lens.data.salient_imagenet import Annotations
from classifier_lens.runner.configuration.value_ranges import (
    Fraction,
    Names,
    NonNegative,
    OneOf,
    PromptWeights,
    Repeats,
)
from classifier_lens.runner.protocols import Cache, Classifier, Dataset, TextSegmenter, World
from classifier_lens.runner.types import Anchor, Edit, Objective, Pictures, UserError
from classifier_lens.tasks.analysis.activation_score import samples, score, sheet, tinted
from classifier_lens.tasks.analysis.audit_set import audited_classes, audited_features, known_of
from classifier_lens.tasks.analysis.label_agreement import (
    CORE,
    SPURIOUS,
    UNDECIDED,
    agreement,
    calibrated,
    interval,
    verdict,
)
from classifier_lens.tasks.problems.image_problems import own_seed, reading, slug
from classifier_lens.tasks.problems.prompt_problems import OBJECTIVES, Prompted, direction, marked, prompt_objective
from classifier_lens.tasks.prompts.target_rules import known_labels
from classifier_lens.tasks.units.activation_ranking import best_row, check_training, rank
from classifier_lens.tasks.units.addressing import FEATURES, Unit, activation
from classifier_lens.tasks.units.hirescam import hirescam

COLUMNS = ("target", "rank", "unit", "objective", "verdict", "label", "r", "r_interval", "activation", "typical")


@dataclass(frozen=True, kw_only=True)
class Feature(Prompted):
    """unit: the feature; rank: among the class's, from 1; typical: its mean activation in the training pictures
    predicted as the class, highest: the largest in any; example: such a picture, of the class where there is one."""

    unit: Unit
    rank: int
    typical: float
    highest: float


class SpuriousAudit:
    """training: pictures on which features are ranked; classes: names, None for all, or `levels:<n>` for n classes of
    each number of features that people found spurious; features: of each class; labels: what people say of features,
    which are then those that are audited, None for nothing; objectives: of `OBJECTIVES`, the first one decides; prompt:
    with free tokens, see `prompt_tuning.py`; segmenter: finds the class by its name; delta: δ of Eq. 6; calibration:
    run folders of labelled audits of other classifiers, by which δ is chosen instead; reached: the share of a feature's
    typical activation below which its prompt's pictures show nothing of it; weights: of the terms."""

    def __init__(
        self, training: Dataset, classes: Names | str | None, features: Repeats, labels: Annotations | None,
        objectives: Annotated[Sequence[Annotated[str, OneOf(tuple(OBJECTIVES))]], MinLen(1)], prompt: str,
        segmenter: TextSegmenter, delta: Fraction, calibration: Sequence[str], reached: NonNegative,
        weights: PromptWeights, cache: Cache, baseline: str,
    ) -> None:  # fmt: skip
        if not objectives:
            raise UserError(f"task.objectives=[]: name at least one of {', '.join(OBJECTIVES)}")
        self.objectives = [check_choice("task.objectives", name, OBJECTIVES) for name in objectives]
        self.features, self.labels = features, labels or None
        self.training, self.classes, self.prompt, self.segmenter = training, classes, prompt, segmenter
        self.delta, self.calibration, self.reached, self.weights = delta, calibration, reached, weights
        self.cache, self.baseline = cache, baseline
        self.schedules = {"inject": [0.0], "blend": [0.0]}
        known = [NamedFiles(Path(run) / "results.jsonl" for run in calibration)] if calibration else []
        self.networks = (segmenter, training, *([] if self.labels is None else [self.labels]), *known)
        self.captioner = None

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        check_training(classifier, self.training)
        if not isinstance(self.classes, str):
            known_labels("task.classes", self.classes, classifier.labels)

    def problems(self, world: World) -> tuple[list[Feature], int | None]:
        """One problem per class, feature and objective."""
        classifier, side = world.classifier, world.generator.resolution
        if self.calibration:
            self.delta = calibrated(self.calibration, classifier.digest)
        ranking = rank(classifier, FEATURES, self.training, side, self.cache)
        asked = [
            (label, k, unit, objective)
            for label in audited_classes(self.classes, self.labels, classifier, ranking, world.seed)
            for k, unit in audited_features(label, self.features, self.labels, classifier, ranking)
            for objective in self.objectives
        ]
        best = memoised(lambda unit, label: best_row(ranking, unit, label, classifier, self.training, side))
        found = []
        for label, k, unit, objective in islice(asked, world.limit):
            name, row = classifier.labels[label], best(unit, label)
            found.append(Feature(
                name=f"{slug(name, classifier.labels)}-{k}-{slug(str(unit))}-{objective}",
                seed=own_seed(world.seed, unit.index, label),
                load=None, edit=Edit.unchanged(marked(self.prompt, name), name), picture=slug(f"{name} {unit}"),
                keep="none", draw=own_seed(world.seed, 0), objective=objective, target=label, unit=unit, rank=k,
                typical=ranking.by_class[label, unit.index].item(), highest=ranking.top[0, unit.index].item(),
                example=reading(self.training, row, content_of(self.training[row]), side),
            ))  # fmt: skip
        return found, len(asked)

    def objective(self, problems: Sequence[Feature], anchor: Anchor, classifier: Classifier) -> Objective:
        return prompt_objective(problems, classifier, self.weights)

    def _found(self, problem: Feature, pictures: Pictures) -> tuple[Tensor, Tensor]:
        """The answer's pictures and where the segmenter finds the class in them."""
        images = samples(pictures)
        return images, self.segmenter.find(images, [problem.edit.source_words] * len(images)).to(images)

    def illustrate(self, problem: Feature, pictures: Pictures, classifier: Classifier) -> dict[str, Tensor]:
        """Where the class was found, and a training picture with where the feature looks in it."""
        assert problem.example is not None
        training = problem.example()
        shown = {"found": sheet(tinted(*self._found(problem, pictures))), "training": training}
        cam = hirescam(classifier, training.to(pictures["best"]), problem.unit)
        return shown if cam is None else shown | {"cam-training": (cam / cam.max().clamp(min=1e-12))[None]}

    def measure(self, problem: Feature, pictures: Pictures, classifier: Classifier) -> dict[str, Any]:
        """r of every image, its mean with an interval, and the verdict: undecided where the images do less to the
        feature than the class's own often do, since they say nothing of it then. Neither verdict is a success; where
        there are human annotations, `agrees` says whether a verdict is theirs."""
        images, masks = self._found(problem, pictures)
        strength = activation(classifier, images, problem.unit).mean().item()
        # Features and weights can be negative.
        gain = direction(classifier, problem.target, problem.unit) * (strength - problem.typical)
        reached = gain >= (self.reached - 1) * abs(problem.typical)
        shares = masks.flatten(1).mean(dim=1).tolist()
        r, (low, high) = fmean(shares), interval(shares)
        said = verdict(low, high, self.delta) if reached else UNDECIDED
        known = known_of(self.labels, problem.target, problem.unit)
        return {
            "agrees": None if known["label"] is None or said == UNDECIDED else known["label"] == said,
            "target": classifier.labels[problem.target], "unit": str(problem.unit), "rank": problem.rank,
            "objective": problem.objective, "verdict": said, "r": r, "r_interval": [low, high], "delta": self.delta,
            "shares": shares, **known, "network": classifier.digest, "activation": strength, "reached": reached,
            "typical": problem.typical, "training_max": problem.highest,
            "activation_score": score(classifier, list(images), problem.target).share,
        }  # fmt: skip

    def summarise(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The table of all features, the first objective's counts of verdicts and of prompts that did not reach their
        feature, and how far verdicts agree with people."""
        deciding = [record for record in records if record["objective"] == self.objectives[0]]
        counts = {kind: sum(record["verdict"] == kind for record in deciding) for kind in (CORE, SPURIOUS, UNDECIDED)}
        table = [{column: record[column] for column in COLUMNS} for record in records]
        return {
            "answers": len(records),
            "delta": self.delta,
            **counts,
            "not_reached": sum(not record["reached"] for record in deciding),
            **agreement(deciding, self.delta),
            "features": table,
        }
