"""Effects of concepts: which phrases and which overlays change what a classifier predicts, by intervention. Nothing is
optimized, and no gradient is needed.

A phrase is put into generated images of a class and taken out of them; an overlay is put on real images. The mean
change of the output is the causal concept effect, CaCE (Goyal et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated

from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor

from classifier_lens.data.digests import hash_values
from classifier_lens.data.image_selection import check_choice
from classifier_lens.runner.configuration.value_ranges import Fraction, Names, NonNegative, PerProblemCount
from classifier_lens.runner.lazy_part import LazyPart, load_if_lazy
from classifier_lens.runner.logging.loop_progress import track_progress
from classifier_lens.runner.protocols import Cache, Classifier, Dataset, Embedder, HasDigest, TaskInputs
from classifier_lens.runner.result_schema import (
    DIFFERENCE,
    ORIGINAL,
    RESULT,
    ImageField,
    Record,
    ResultImages,
    ResultSchema,
)
from classifier_lens.runner.types import (
    DISABLED_PROMPT_TO_PROMPT,
    CaptionEdit,
    Objective,
    Problem,
    Reference,
    Scene,
    UserError,
    matching_names,
)
from classifier_lens.tasks.analysis.activation_score import image_grid
from classifier_lens.tasks.interventions.design import Phrase, check_template, format_scene
from classifier_lens.tasks.interventions.effect_records import (
    OVERLAY,
    PHRASES,
    SIGNIFICANCE,
    ConceptEffectRecord,
    ConceptEffectSummary,
    OverlayRow,
    PairRow,
    PhraseRow,
    overlay_row,
    pair_row,
    phrase_row,
)
from classifier_lens.tasks.interventions.effects import smallest_detectable_effect
from classifier_lens.tasks.interventions.overlay_effects import PlainImages, outputs, overlay_effects
from classifier_lens.tasks.interventions.overlays import Overlay
from classifier_lens.tasks.interventions.phrase_effects import (
    ClassSet,
    Design,
    is_predicted,
    paired_effect,
    phrase_effects,
)
from classifier_lens.tasks.problems.problem_names import problem_seed, slug
from classifier_lens.tasks.prompts.target_rules import resolve_class_names

SampleSize = Annotated[int, Ge(2), Le(10_000)]  # of values that get an interval
PAIRS_SHOWN = 3, 2  # pairs of images of the class, and of the similar class; of an overlay, their sum


def importance(record: Record) -> tuple[bool, bool, float]:
    """The order of results on a page: phrases first, shortcuts before others, the largest effect first; then overlays
    in the order of their list."""
    if record["kind"] == OVERLAY:
        return True, False, 0.0
    return False, not record["found"], -record["effects"][0]["effect"]


RESULT_SCHEMA = ResultSchema(
    "Concept effects",
    ConceptEffectRecord,
    rows=[PhraseRow, PairRow, OverlayRow],
    summary=[ConceptEffectSummary],
    images=[
        ImageField(ORIGINAL.key, "Without the concept"),
        ImageField(RESULT.key, "With the concept"),
    ],
    omitted_images=[DIFFERENCE],
    order=importance,
)


@dataclass(frozen=True, kw_only=True)
class ConceptProblem(Problem):
    """record: the measured effects."""

    record: ConceptEffectRecord


@dataclass
class ConceptEffect:
    """classes: names, None for all; similar_class: `nearest` for the class that the data set names, `confusion` for
    the one that images of the class are most confused with; prompt: with `{class}` and a field per factor; factors:
    phrases by factor; optional_factors: those about which a part of the prompts says nothing; images_per_phrase:
    images of a class with each phrase of the longest factor; effect_threshold: smallest effect on the probability that
    makes a phrase a shortcut; pairs: matched pairs of each kind; min_share_generated: share of the images that show a
    phrase, below which it is untested; clip: measures that, None for no check; overlays: by name; num_images: images
    of the data set that get overlays; log_odds_threshold: smallest effect that makes an overlay a shortcut;
    classes_shown: classes that a result of an overlay names; cache: stores generated images."""

    classes: Names | None
    similar_class: str
    prompt: str
    factors: Mapping[str, Names]
    optional_factors: Names
    images_per_phrase: SampleSize
    effect_threshold: Fraction
    pairs: SampleSize
    min_share_generated: Fraction
    clip: Embedder | LazyPart[Embedder] | None
    overlays: Mapping[str, Overlay]
    num_images: SampleSize
    log_odds_threshold: NonNegative
    classes_shown: PerProblemCount
    cache: Cache

    baseline = "none"
    captioner = None
    prompt_to_prompt = DISABLED_PROMPT_TO_PROMPT

    def __post_init__(self) -> None:
        for factor in self.optional_factors:
            check_choice("task.optional_factors", factor, self.factors)
        check_template(self.prompt, self.phrases)

    @property
    def dependencies(self) -> Sequence[HasDigest]:
        """The overlays that are functions of the user's."""
        return [overlay for overlay in self.overlays.values() if overlay.digest]

    @property
    def phrases(self) -> dict[str, list[Phrase]]:
        """The phrases by factor, with None where a prompt may say nothing about it."""
        return {
            factor: [*([None] if factor in self.optional_factors else []), *phrases]
            for factor, phrases in self.factors.items()
        }

    def check(self, classifier: Classifier, dataset: Dataset) -> None:
        resolve_class_names("task.classes", self.classes, classifier.labels)

    def problems(self, inputs: TaskInputs) -> tuple[list[ConceptProblem], int]:
        """One problem per class whose phrases are tested, and one per overlay. Raises UserError if there is neither a
        generator nor an image."""
        labels = resolve_class_names("task.classes", self.classes, inputs.classifier.labels)
        tests_phrases = bool(self.factors) and inputs.generator.can_generate
        overlays = dict(self.overlays) if len(inputs.dataset) else {}
        if not tests_phrases and not overlays:
            raise UserError("generator=none data=none: concepts need a generator for phrases or images for overlays")
        if self.factors and not tests_phrases:
            print("generator=none: phrases are not tested; overlays are", flush=True)
        makers: list[Callable[[], ConceptProblem]] = []
        if tests_phrases:
            clip = None if self.clip is None else load_if_lazy(self.clip)
            images_per_class = self.images_per_phrase * max(map(len, self.phrases.values()))
            design = Design(self.prompt, self.phrases, images_per_class, clip, self.cache, inputs)
            sets = _Sets(design)
            makers += [partial(self._phrase_problem, design, sets, label) for label in labels]
        if overlays:
            images = PlainImages(inputs.dataset, inputs.classifier, self.num_images)
            makers += [partial(self._overlay_problem, images, inputs, name) for name in overlays]
        return [make() for make in track_progress(list(islice(makers, inputs.limit)), "concepts tested")], len(makers)

    # --- phrases ---------------------------------------------------------------------------------------------

    def _phrase_problem(self, design: Design, sets: _Sets, label: str) -> ConceptProblem:
        """The effects of all phrases on a class; those of shortcuts, or else of the strongest one, in pairs."""
        labels = design.inputs.classifier.labels
        index, own = labels.index(label), sets[label]
        similar = self._similar_class(design.inputs, label, own)
        measured = [
            (effect, phrase_row(effect, self.effect_threshold, self.min_share_generated))
            for effect in phrase_effects(design, index, own, sets[similar])
        ]
        # Untested phrases last: the strongest one of the others is shown where there is no shortcut.
        measured.sort(key=lambda pair: (not pair[1]["tested"], -pair[0].effect.value))
        effects, rows = [effect for effect, _ in measured], [row for _, row in measured]
        paired = [e for e, row in zip(effects, rows, strict=True) if row["found"]] or effects[:1]
        pairs = [paired_effect(design, index, own, sets[similar], (e.factor, e.phrase), self.pairs) for e in paired]
        record: ConceptEffectRecord = {
            "kind": PHRASES, "target": label, "similar_class": similar,
            "found": [row["concept"] for row in rows if row["found"]],
            "recall": float(is_predicted(own.probabilities, index).mean()),
            "num_images": len(own.scenes) + len(sets[similar].scenes),
            "effects": rows,
            "pairs": [pair_row(e.phrase, pair) for e, pair in zip(paired, pairs, strict=True)],
            "untested": [row["concept"] for row in rows if not row["tested"]],
            "detectable_effect": smallest_detectable_effect([e.effect for e in effects], SIGNIFICANCE),
        }  # fmt: skip
        first = paired[0]
        edit = CaptionEdit(
            format_scene(self.prompt, label, dict.fromkeys(self.factors)),
            format_scene(self.prompt, label, {**dict.fromkeys(self.factors), first.factor: first.phrase}),
            label, f"{label} {first.phrase}",
        )  # fmt: skip
        shown = [start + row for start, n in zip((0, self.pairs), PAIRS_SHOWN, strict=True) for row in range(n)]
        rows_shown = [row for row in shown if row < len(pairs[0].without)]
        without, with_phrase = pairs[0].without[rows_shown], pairs[0].with_phrase[rows_shown]
        judge = None if design.clip is None else hash_values(design.clip.fingerprint)
        return _problem(slug(label, labels), design.inputs, edit, record, without, with_phrase, judge)

    def _similar_class(self, inputs: TaskInputs, label: str, own: ClassSet) -> str:
        """The class whose images show whether a phrase alone is enough."""
        labels = inputs.classifier.labels
        if self.similar_class == "nearest" and (name := inputs.dataset.nearest_class(label)) is not None:
            if known := [other for other in matching_names(name, labels) if other != label]:
                return known[0]
        return labels[own.most_confused(labels.index(label))]

    # --- overlays --------------------------------------------------------------------------------------------

    def _overlay_problem(self, images: PlainImages, inputs: TaskInputs, name: str) -> ConceptProblem:
        """The effects of an overlay on the classes that it changes most."""
        overlay, classifier = self.overlays[name], inputs.classifier
        overlaid = overlay(images.pixels)
        with_overlay = outputs(classifier, overlaid)
        effects = overlay_effects(images.outputs, with_overlay)
        rows = [
            overlay_row(effect, classifier.labels, self.log_odds_threshold) for effect in effects[: self.classes_shown]
        ]
        record: ConceptEffectRecord = {
            "kind": OVERLAY, "overlay": overlay.phrase, "is_control": overlay.is_control,
            "is_damage": overlay.is_damage,
            "found": [row["class_name"] for row in rows if row["found"]],
            "num_images": len(images.pixels),
            "effects": rows,
            "accuracy_without": images.outputs.accuracy(images.labels),
            "accuracy_with": with_overlay.accuracy(images.labels),
        }  # fmt: skip
        edit = CaptionEdit.unchanged(overlay.phrase, overlay.phrase)
        shown = slice(0, sum(PAIRS_SHOWN))
        return _problem(
            f"overlay-{slug(name, list(self.overlays))}", inputs, edit, record,
            images.pixels[shown], overlaid[shown], images.digest,
        )  # fmt: skip

    # --- results ---------------------------------------------------------------------------------------------

    def objective(self, problems: Sequence[ConceptProblem], reference: Reference, classifier: Classifier) -> Objective:
        """The mean absolute change of the pixels, which nothing minimizes."""

        def pixel_change(scene: Scene) -> Float[Tensor, " b"]:
            return (scene.image - reference.original).abs().flatten(1).mean(dim=1)

        return {"pixel_change": (1.0, pixel_change)}

    def illustrate(
        self, problem: ConceptProblem, images: ResultImages, classifier: Classifier
    ) -> dict[ImageField, Float[Tensor, "c h w"]]:
        """No further images."""
        return {}

    def measure(self, problem: ConceptProblem, images: ResultImages, classifier: Classifier) -> ConceptEffectRecord:
        """The effects that were measured to create the problem."""
        return problem.record

    def summarize(self, records: Sequence[Record]) -> ConceptEffectSummary:
        """All shortcuts that were found."""
        phrases = [
            {"class": r["target"], "concept": row["concept"], "effect": row["effect"], "interval": row["interval"]}
            for r in records if r["kind"] == PHRASES for row in r["effects"] if row["found"]
        ]  # fmt: skip
        overlays = [
            {"class": row["class_name"], "concept": r["overlay"], "log_odds_change": row["log_odds_change"],
             "interval": row["interval"]}
            for r in records if r["kind"] == OVERLAY and not (r["is_control"] or r["is_damage"])
            for row in r["effects"] if row["found"]
        ]  # fmt: skip
        return {
            "results": len(records),
            "shortcuts": [
                *sorted(phrases, key=lambda row: -row["effect"]),
                *sorted(overlays, key=lambda row: -row["log_odds_change"]),
            ],
            "classes": sum(r["kind"] == PHRASES for r in records),
            "overlays": sum(r["kind"] == OVERLAY for r in records),
        }


class _Sets(dict[str, ClassSet]):
    """The sets of images by class, generated when they are first read."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        self._design = design

    def __missing__(self, label: str) -> ClassSet:
        self[label] = self._design.class_set(label)
        return self[label]


def _problem(
    name: str, inputs: TaskInputs, edit: CaptionEdit, record: ConceptEffectRecord, without: Float[Tensor, "n 3 h w"],
    with_concept: Float[Tensor, "n 3 h w"], content_digest: str | None = None,
) -> ConceptProblem:  # fmt: skip
    """A problem whose original and result are grids of images without and with a concept."""
    original, result = image_grid(without), image_grid(with_concept)
    return ConceptProblem(
        name=name, seed=problem_seed(inputs.seed, 0), edit=edit, load=lambda: original, load_edited=lambda: result,
        image_name=name, preserve="none", content_digest=content_digest, record=record,
    )  # fmt: skip
