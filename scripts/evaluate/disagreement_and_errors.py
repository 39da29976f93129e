"""Rows of the planted world that check disagreement, errors and attributes against what was planted."""

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
    oracles_confirm,
    predicted_labels,
    proportion_or_nan,
    result_images,
    successful_results,
)

# The zero-shot classifier's confused names: class -> what its pictures show instead (class, background).
CONFUSED_SCENES = {"rock crab": ("fiddler crab", "sand"), "partridge": ("prairie chicken", "snow")}


# --- disagreement --------------------------------------------------------------------------------------------


def disagreement_overrides(
    setting: Setting, n: int, classes: Sequence[str], experiment: str = "disagreement"
) -> tuple[str, ...]:
    """The overrides of a disagreement over `planted_clean`, as many pictures of each of the classes."""
    return (
        f"experiment=planted/{experiment}", f"task.classes=[{','.join(classes)}]",
        f"task.num_seeds={-(-n // len(classes))}", f"seed={setting.seed}",
    )  # fmt: skip


def disagreement_results(setting: Setting, n: int, classes: Sequence[str]) -> tuple[Result, ...]:
    """Pictures that `planted_shortcut` is to call each of the classes while `planted_clean` is not."""
    return compute_results(setting, "planted_shortcut", disagreement_overrides(setting, n, classes), n)


def disagreement_success(setting: Setting, n: int, classes: Sequence[str]) -> Estimate:
    """How often p_f − p_g reaches the gap, `planted_shortcut` over `planted_clean`."""
    given = disagreement_results(setting, n, classes)
    hits = [a.success for a in given]
    by_class = ", ".join(
        f"{c} {sum(a.success for a in own)} of {len(own)}"
        for c in classes if (own := [a for a in given if planted.CLASSES[a.problem.target] == c])
    )  # fmt: skip
    return estimates.proportion(hits, by_class)


def disagreement_cue(setting: Setting, n: int) -> Estimate:
    """In how many of the successes both oracles see the cue of the class."""
    own, images = successful_results(disagreement_results(setting, n, SHORTCUT_CLASSES))
    seen = [
        oracles_confirm(setting, factor, images[i : i + 1], [value])[0]
        for i, a in enumerate(own) for factor, value in [planted.SHORTCUTS[planted.CLASSES[a.problem.target]]]
    ]  # fmt: skip
    return proportion_or_nan(seen, f"{len(own)} of {n} succeeded")


def disagreement_transfer(setting: Setting, n: int) -> Estimate:
    """How many of the successes the second shortcut network calls the class, and the second clean one does not."""
    own, images = successful_results(disagreement_results(setting, n, SHORTCUT_CLASSES))
    if not own:
        return proportion_or_nan([], "none succeeded")
    wanted = [planted.CLASSES[a.problem.target] for a in own]
    fooled = [a == b for a, b in zip(predicted_labels(setting, "planted_shortcut2", images), wanted, strict=True)]
    spared = [a != b for a, b in zip(predicted_labels(setting, "planted_clean2", images), wanted, strict=True)]
    note = f"shortcut2 fooled in {sum(fooled)}, clean2 not in {sum(spared)} of {len(own)}"
    return proportion_or_nan(all_true(fooled, spared), note)


def disagreement_clip_confusion(setting: Setting, n: int) -> Estimate:
    """In how many of the zero-shot classifier's successes over `planted_clean` both oracles see the confused thing: a
    crab, or such a bird, of the wrong kind on the ground that its name speaks of."""
    overrides = (
        *disagreement_overrides(setting, n, tuple(CONFUSED_SCENES), "fig05"),
        "task/retrieval=none",
        "~task.retrieval.dataset",
    )
    own, images = successful_results(compute_results(setting, "planted_clip", overrides, n))
    seen = []
    for i, a in enumerate(own):
        kind, ground = CONFUSED_SCENES[planted.CLASSES[a.problem.target]]
        picture = images[i : i + 1]
        seen.append(
            oracles_confirm(setting, "class", picture, [kind])[0]
            and oracles_confirm(setting, "background", picture, [ground])[0]
        )
    return proportion_or_nan(seen, f"{len(own)} of {n} succeeded")


# --- counterfactuals of errors and attributes ----------------------------------------------------------------


@dataclass(frozen=True)
class ErrorCorrection:
    """Misclassified pictures towards their labels: of which classifier, and with which settings."""

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
    """How many errors are predicted as their label afterwards."""
    return estimates.proportion([a.success for a in errors.results(setting, n)])


def error_oracle_score(setting: Setting, n: int) -> Estimate:
    """How many of the weak network's pictures show their label to both oracles."""
    given = WEAK_CLASSIFIER.results(setting, n)
    rows, images = result_images(given)
    seen = oracles_confirm(setting, "class", images, [planted.CLASSES[given[i].problem.target] for i in rows])
    return estimates.proportion(seen + [False] * (n - len(rows)))


def error_cue(setting: Setting, n: int) -> Estimate:
    """In how many of the corrected errors of tied classes, their object kept, both oracles see the cue."""
    given = [a for a in OBJECT_PRESERVED.results(setting, n) if planted.CLASSES[a.problem.target] in SHORTCUT_CLASSES]
    own, images = successful_results(given)
    seen = [
        oracles_confirm(setting, factor, images[i : i + 1], [value])[0]
        for i, a in enumerate(own) for factor, value in [planted.SHORTCUTS[planted.CLASSES[a.problem.target]]]
    ]  # fmt: skip
    return proportion_or_nan(seen, f"{len(given)} of {n} errors are of tied classes, {len(own)} of these corrected")


def attribute_results(setting: Setting, n: int) -> tuple[Result, ...]:
    """Pictures in snow towards sand, judged by the zero-shot classifier."""
    overrides = ("experiment=planted/attribute", "data.count=2000", f"seed={setting.seed}")
    return compute_results(setting, "planted_clip", overrides, n)


def attribute_success(setting: Setting, n: int) -> Estimate:
    """How often the zero-shot classifier finds the new prompt more likely."""
    return estimates.proportion([a.success for a in attribute_results(setting, n)])


def attribute_oracle_score(setting: Setting, n: int) -> Estimate:
    """How often both oracles see the new background; how often the class stayed is in the note."""
    given = attribute_results(setting, n)
    rows, images = result_images(given)
    data = planted.PlantedDataset("test", 2000, setting.seed, "chance")
    labels = [planted.CLASSES[int(data.scenes.label[int(given[i].problem.image_name.split("-")[1])])] for i in rows]
    seen, stayed = (
        oracles_confirm(setting, "background", images, ["sand"] * len(rows)),
        oracles_confirm(setting, "class", images, labels),
    )
    note = f"the class stays in {100 * sum(stayed) / n:.1f} %"
    return estimates.proportion(seen + [False] * (n - len(rows)), note)


ROWS = (
    Metric("planted.disagreement", partial(disagreement_success, classes=SHORTCUT_CLASSES), 32, "%", 0.90),
    Metric("planted.disagreement_cue", disagreement_cue, 32, "%", 0.80),
    Metric("planted.disagreement_transfer", disagreement_transfer, 32, "%", 0.70),
    Metric("planted.disagreement_others",
        partial(disagreement_success, classes=tuple(c for c in planted.CLASSES if c not in SHORTCUT_CLASSES)), 24, "%"),
    Metric("planted.disagreement_clip", disagreement_clip_confusion, 16, "%", 0.80),
    Metric("planted.error_corrected", partial(error_corrected, errors=WEAK_CLASSIFIER), 64, "%", 0.90),
    Metric("planted.error_oracles", error_oracle_score, 64, "%", 0.70),
    Metric("planted.error_shortcut.object_kept", partial(error_corrected, errors=OBJECT_PRESERVED), 32, "%", 0.90),
    Metric("planted.error_shortcut_cue.object_kept", error_cue, 32, "%", 0.80),
    Metric("planted.error_shortcut.background_kept", partial(error_corrected, errors=BACKGROUND_PRESERVED), 32, "%"),
    Metric("planted.attribute_clip", attribute_success, 64, "%", 0.90),
    Metric("planted.attribute_oracles", attribute_oracle_score, 64, "%", 0.70),
)  # fmt: skip
