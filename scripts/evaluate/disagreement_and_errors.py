"""Rows of the planted world that check disagreement, errors and attributes against what was planted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from classifier_lens.data import planted
from classifier_lens.scripts.evaluate import estimates
from classifier_lens.scripts.evaluate.estimates import Estimate
from classifier_lens.scripts.evaluate.metric import Answer, Row, Setting, answers
from classifier_lens.scripts.evaluate.oracles import TIED, all_of, answered, both, called, share_of, succeeded

# The zero-shot classifier's confused names: class -> what its pictures show instead (class, background).
CONFUSED = {"rock crab": ("fiddler crab", "sand"), "partridge": ("prairie chicken", "snow")}


# --- disagreement --------------------------------------------------------------------------------------------


def disputed(setting: Setting, n: int, classes: Sequence[str], experiment: str = "disagreement") -> tuple[str, ...]:
    """The overrides of a disagreement over `planted_clean`, as many pictures of each of the classes."""
    return (
        f"experiment=planted/{experiment}", f"task.classes=[{','.join(classes)}]",
        f"task.seeds={-(-n // len(classes))}", f"seed={setting.seed}",
    )  # fmt: skip


def disputes(setting: Setting, n: int, classes: Sequence[str]) -> tuple[Answer, ...]:
    """Pictures that `planted_shortcut` is to call each of the classes while `planted_clean` is not."""
    return answers(setting, "planted_shortcut", disputed(setting, n, classes), n)


def disagreement(setting: Setting, n: int, classes: Sequence[str]) -> Estimate:
    """How often p_f − p_g reaches the gap, `planted_shortcut` over `planted_clean`."""
    given = disputes(setting, n, classes)
    hits = [a.success for a in given]
    by_class = ", ".join(
        f"{c} {sum(a.success for a in own)} of {len(own)}"
        for c in classes if (own := [a for a in given if planted.CLASSES[a.problem.target] == c])
    )  # fmt: skip
    return estimates.share(hits, by_class)


def disagreement_cue(setting: Setting, n: int) -> Estimate:
    """In how many of the successes both oracles see the cue of the class."""
    own, images = succeeded(disputes(setting, n, TIED))
    seen = [
        both(setting, factor, images[i : i + 1], [value])[0]
        for i, a in enumerate(own) for factor, value in [planted.SHORTCUTS[planted.CLASSES[a.problem.target]]]
    ]  # fmt: skip
    return share_of(seen, f"{len(own)} of {n} succeeded")


def disagreement_transfer(setting: Setting, n: int) -> Estimate:
    """How many of the successes the second shortcut network calls the class, and the second clean one does not."""
    own, images = succeeded(disputes(setting, n, TIED))
    if not own:
        return share_of([], "none succeeded")
    wanted = [planted.CLASSES[a.problem.target] for a in own]
    fooled = [a == b for a, b in zip(called(setting, "planted_shortcut2", images), wanted, strict=True)]
    spared = [a != b for a, b in zip(called(setting, "planted_clean2", images), wanted, strict=True)]
    note = f"shortcut2 fooled in {sum(fooled)}, clean2 not in {sum(spared)} of {len(own)}"
    return share_of(all_of(fooled, spared), note)


def disagreement_clip(setting: Setting, n: int) -> Estimate:
    """In how many of the zero-shot classifier's successes over `planted_clean` both oracles see the confused thing: a
    crab, or such a bird, of the wrong kind on the ground that its name speaks of."""
    overrides = (*disputed(setting, n, tuple(CONFUSED), "fig05"), "task/validate=none", "~task.validate.dataset")
    own, images = succeeded(answers(setting, "planted_clip", overrides, n))
    seen = []
    for i, a in enumerate(own):
        kind, ground = CONFUSED[planted.CLASSES[a.problem.target]]
        picture = images[i : i + 1]
        seen.append(both(setting, "class", picture, [kind])[0] and both(setting, "background", picture, [ground])[0])
    return share_of(seen, f"{len(own)} of {n} succeeded")


# --- counterfactuals of errors and attributes ----------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """Misclassified pictures towards their labels: of which classifier, and with which settings."""

    classifier: str
    settings: tuple[str, ...]

    def overrides(self, setting: Setting) -> tuple[str, ...]:
        return (*self.settings, "data.count=2000", f"seed={setting.seed}")

    def answers(self, setting: Setting, n: int) -> tuple[Answer, ...]:
        return answers(setting, self.classifier, self.overrides(setting), n)


WEAK = Errors("planted_weak", ("experiment=planted/fig25",))
OBJECT_KEPT = Errors("planted_shortcut", ("experiment=planted/error",))
BACKGROUND_KEPT = Errors("planted_shortcut", ("experiment=planted/fig25",))


def corrected(setting: Setting, n: int, errors: Errors) -> Estimate:
    """How many errors are predicted as their label afterwards."""
    return estimates.share([a.success for a in errors.answers(setting, n)])


def error_oracles(setting: Setting, n: int) -> Estimate:
    """How many of the weak network's pictures show their label to both oracles."""
    given = WEAK.answers(setting, n)
    rows, images = answered(given)
    seen = both(setting, "class", images, [planted.CLASSES[given[i].problem.target] for i in rows])
    return estimates.share(seen + [False] * (n - len(rows)))


def error_cue(setting: Setting, n: int) -> Estimate:
    """In how many of the corrected errors of tied classes, their object kept, both oracles see the cue."""
    given = [a for a in OBJECT_KEPT.answers(setting, n) if planted.CLASSES[a.problem.target] in TIED]
    own, images = succeeded(given)
    seen = [
        both(setting, factor, images[i : i + 1], [value])[0]
        for i, a in enumerate(own) for factor, value in [planted.SHORTCUTS[planted.CLASSES[a.problem.target]]]
    ]  # fmt: skip
    return share_of(seen, f"{len(given)} of {n} errors are of tied classes, {len(own)} of these corrected")


def attributes(setting: Setting, n: int) -> tuple[Answer, ...]:
    """Pictures in snow towards sand, judged by the zero-shot classifier."""
    overrides = ("experiment=planted/attribute", "data.count=2000", f"seed={setting.seed}")
    return answers(setting, "planted_clip", overrides, n)


def attribute_clip(setting: Setting, n: int) -> Estimate:
    """How often the zero-shot classifier finds the new prompt more likely."""
    return estimates.share([a.success for a in attributes(setting, n)])


def attribute_oracles(setting: Setting, n: int) -> Estimate:
    """How often both oracles see the new background; how often the class stayed is in the note."""
    given = attributes(setting, n)
    rows, images = answered(given)
    data = planted.PlantedDataset("test", 2000, setting.seed, "chance")
    labels = [planted.CLASSES[int(data.scenes.label[int(given[i].problem.picture.split("-")[1])])] for i in rows]
    seen, stayed = both(setting, "background", images, ["sand"] * len(rows)), both(setting, "class", images, labels)
    note = f"the class stays in {100 * sum(stayed) / n:.1f} %"
    return estimates.share(seen + [False] * (n - len(rows)), note)


ROWS = (
    Row("planted.disagreement", partial(disagreement, classes=TIED), 32, "%", 0.90),
    Row("planted.disagreement_cue", disagreement_cue, 32, "%", 0.80),
    Row("planted.disagreement_transfer", disagreement_transfer, 32, "%", 0.70),
    Row("planted.disagreement_others",
        partial(disagreement, classes=tuple(c for c in planted.CLASSES if c not in TIED)), 24, "%"),
    Row("planted.disagreement_clip", disagreement_clip, 16, "%", 0.80),
    Row("planted.error_corrected", partial(corrected, errors=WEAK), 64, "%", 0.90),
    Row("planted.error_oracles", error_oracles, 64, "%", 0.70),
    Row("planted.error_shortcut.object_kept", partial(corrected, errors=OBJECT_KEPT), 32, "%", 0.90),
    Row("planted.error_shortcut_cue.object_kept", error_cue, 32, "%", 0.80),
    Row("planted.error_shortcut.background_kept", partial(corrected, errors=BACKGROUND_KEPT), 32, "%"),
    Row("planted.attribute_clip", attribute_clip, 64, "%", 0.90),
    Row("planted.attribute_oracles", attribute_oracles, 64, "%", 0.70),
)  # fmt: skip
