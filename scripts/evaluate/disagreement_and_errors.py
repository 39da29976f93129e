"""Metrics that check disagreement, error correction and attributes against the planted shortcuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from classifier_lens.data import planted
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Metric, Result, Setting, compute_results
from classifier_lens.scripts.evaluate.oracles import (
    SHORTCUT_CLASSES,
    all_true,
    cues_confirmed,
    oracles_confirm,
    predicted_labels,
    proportion_or_nan,
    result_images,
    successful_results,
)

# Confused names of the zero-shot classifier: class -> what its images show instead (class, background).
CONFUSED_SCENES = {"rock crab": ("fiddler crab", "sand"), "partridge": ("prairie chicken", "snow")}


# --- disagreement --------------------------------------------------------------------------------------------


def disagreement_overrides(
    setting: Setting, n: int, classes: Sequence[str], experiment: str = "disagreement"
) -> tuple[str, ...]:
    """The overrides of a disagreement with `planted_clean`, with the same number of images per class."""
    return (
        f"experiment=planted/{experiment}", f"task.classes=[{','.join(classes)}]",
        f"task.num_seeds={-(-n // len(classes))}", f"seed={setting.seed}",
    )  # fmt: skip


def disagreement_results(setting: Setting, n: int, classes: Sequence[str]) -> tuple[Result, ...]:
    """Images optimized for a class of `planted_shortcut` and against the same class of `planted_clean`."""
    return compute_results(setting, "planted_shortcut", disagreement_overrides(setting, n, classes), n)


def disagreement_success(setting: Setting, n: int, classes: Sequence[str]) -> Estimate:
    """How often p_f − p_g reaches the gap, f `planted_shortcut` and g `planted_clean`."""
    results = disagreement_results(setting, n, classes)
    hits = [result.success for result in results]
    hits_of = {name: [r.success for r in results if planted.CLASSES[r.problem.target] == name] for name in classes}
    note = ", ".join(
        f"{name} {sum(class_hits)} of {len(class_hits)}" for name, class_hits in hits_of.items() if class_hits
    )
    return estimates.proportion(hits, note)


def disagreement_cue(setting: Setting, n: int) -> Estimate:
    """Share of the successes in which both oracles see the cue of the class."""
    successes, images = successful_results(disagreement_results(setting, n, SHORTCUT_CLASSES))
    confirmed = cues_confirmed(setting, successes, images)
    return proportion_or_nan(confirmed, f"{len(successes)} of {n} succeeded")


def disagreement_transfer(setting: Setting, n: int) -> Estimate:
    """Share of the successes that the second shortcut network predicts as the class and the second clean one does
    not."""
    successes, images = successful_results(disagreement_results(setting, n, SHORTCUT_CLASSES))
    if not successes:
        return proportion_or_nan([], "none succeeded")
    target_labels = [planted.CLASSES[a.problem.target] for a in successes]
    predicted_by_shortcut2 = [
        a == b for a, b in zip(predicted_labels(setting, "planted_shortcut2", images), target_labels, strict=True)
    ]
    not_predicted_by_clean2 = [
        a != b for a, b in zip(predicted_labels(setting, "planted_clean2", images), target_labels, strict=True)
    ]
    note = f"predicted by shortcut2 {sum(predicted_by_shortcut2)}, not by clean2 {sum(not_predicted_by_clean2)}"
    note += f" of {len(successes)}"
    return proportion_or_nan(all_true(predicted_by_shortcut2, not_predicted_by_clean2), note)


def disagreement_clip_confusion(setting: Setting, n: int) -> Estimate:
    """Share of the zero-shot classifier's successes against `planted_clean` in which both oracles see the confused
    scene: the other crab on sand, or the other bird in snow."""
    overrides = (
        *disagreement_overrides(setting, n, tuple(CONFUSED_SCENES), "fig05"),
        "task/retrieval=none",
        "~task.retrieval.dataset",
    )
    successes, images = successful_results(compute_results(setting, "planted_clip", overrides, n))
    confirmed = []
    for i, result in enumerate(successes):
        kind, ground = CONFUSED_SCENES[planted.CLASSES[result.problem.target]]
        image = images[i : i + 1]
        confirmed.append(
            oracles_confirm(setting, "class", image, [kind])[0]
            and oracles_confirm(setting, "background", image, [ground])[0]
        )
    return proportion_or_nan(confirmed, f"{len(successes)} of {n} succeeded")


# --- counterfactuals of errors and attributes ----------------------------------------------------------------


@dataclass(frozen=True)
class ErrorCorrection:
    """Counterfactuals of misclassified images towards their labels: the classifier and the settings."""

    classifier: str
    base_overrides: tuple[str, ...]

    def overrides(self, setting: Setting) -> tuple[str, ...]:
        return (*self.base_overrides, "data.count=2000", f"seed={setting.seed}")

    def results(self, setting: Setting, n: int) -> tuple[Result, ...]:
        return compute_results(setting, self.classifier, self.overrides(setting), n)


WEAK_CLASSIFIER = ErrorCorrection("planted_weak", ("experiment=planted/fig25",))
OBJECT_PRESERVED = ErrorCorrection("planted_shortcut", ("experiment=planted/error",))
BACKGROUND_PRESERVED = ErrorCorrection("planted_shortcut", ("experiment=planted/fig25",))


def error_corrected(setting: Setting, n: int, errors: ErrorCorrection) -> Estimate:
    """Share of the errors that are predicted as their label afterwards."""
    return estimates.proportion([result.success for result in errors.results(setting, n)])


def error_oracle_score(setting: Setting, n: int) -> Estimate:
    """Share of the weak network's counterfactuals that both oracles predict as the label."""
    results = WEAK_CLASSIFIER.results(setting, n)
    rows, images = result_images(results)
    confirmed = oracles_confirm(setting, "class", images, [planted.CLASSES[results[i].problem.target] for i in rows])
    return estimates.proportion(confirmed + [False] * (n - len(rows)))


def error_cue(setting: Setting, n: int) -> Estimate:
    """Share of the corrected errors of classes with a shortcut, their object preserved, in which both oracles see the
    cue."""
    results = [
        result
        for result in OBJECT_PRESERVED.results(setting, n)
        if planted.CLASSES[result.problem.target] in SHORTCUT_CLASSES
    ]
    successes, images = successful_results(results)
    confirmed = cues_confirmed(setting, successes, images)
    return proportion_or_nan(
        confirmed, f"{len(results)} of {n} errors are of classes with a shortcut, {len(successes)} of them corrected"
    )


def attribute_results(setting: Setting, n: int) -> tuple[Result, ...]:
    """Counterfactuals of images in snow towards sand for the zero-shot classifier."""
    overrides = ("experiment=planted/attribute", "data.count=2000", f"seed={setting.seed}")
    return compute_results(setting, "planted_clip", overrides, n)


def attribute_success(setting: Setting, n: int) -> Estimate:
    """How often the zero-shot classifier prefers the new prompt."""
    return estimates.proportion([result.success for result in attribute_results(setting, n)])


def attribute_oracle_score(setting: Setting, n: int) -> Estimate:
    """How often both oracles see the new background; the note has how often the class is preserved."""
    results = attribute_results(setting, n)
    rows, images = result_images(results)
    data = planted.PlantedDataset("test", 2000, setting.seed, "independent", None)
    labels = [planted.CLASSES[int(data.scenes.label[int(results[i].problem.image_name.split("-")[1])])] for i in rows]
    confirmed, class_preserved = (
        oracles_confirm(setting, "background", images, ["sand"] * len(rows)),
        oracles_confirm(setting, "class", images, labels),
    )
    note = f"class preserved in {100 * sum(class_preserved) / n:.1f} %"
    return estimates.proportion(confirmed + [False] * (n - len(rows)), note)


METRICS = (
    Metric("planted.disagreement", partial(disagreement_success, classes=SHORTCUT_CLASSES), 32, "%", 0.90),
    Metric("planted.disagreement_cue", disagreement_cue, 32, "%", 0.80),
    Metric("planted.disagreement_transfer", disagreement_transfer, 32, "%", 0.70),
    Metric("planted.disagreement_other_classes",
        partial(disagreement_success, classes=tuple(c for c in planted.CLASSES if c not in SHORTCUT_CLASSES)), 24, "%"),
    Metric("planted.disagreement_clip", disagreement_clip_confusion, 16, "%", 0.80),
    Metric("planted.error_corrected", partial(error_corrected, errors=WEAK_CLASSIFIER), 64, "%", 0.90),
    Metric("planted.error_oracles", error_oracle_score, 64, "%", 0.70),
    Metric("planted.error_shortcut.object_preserved", partial(error_corrected, errors=OBJECT_PRESERVED), 32, "%", 0.90),
    Metric("planted.error_shortcut_cue.object_preserved", error_cue, 32, "%", 0.80),
    Metric("planted.error_shortcut.background_preserved",
        partial(error_corrected, errors=BACKGROUND_PRESERVED), 32, "%"),
    Metric("planted.attribute_clip", attribute_success, 64, "%", 0.90),
    Metric("planted.attribute_oracles", attribute_oracle_score, 64, "%", 0.70),
)  # fmt: skip
