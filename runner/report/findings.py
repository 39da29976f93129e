"""The finding of a result: a sentence per task, key numbers and notes under its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from classifier_lens.runner.report.wording import count, percent, two_digits
from classifier_lens.runner.result_schema import ORIGINAL, RESULT, SAMPLES, START, Record
from classifier_lens.tasks.attention_maps import CLASS_NAME_MAP
from classifier_lens.tasks.input_gradients import NO_AUGMENTATION, gradient_field
from classifier_lens.tasks.interventions.effect_records import OVERLAY
from classifier_lens.tasks.neuron_cf import ATTACKED
from classifier_lens.tasks.neuron_vis import BEST_WORD_IMAGE, TRAINING_IMAGE
from classifier_lens.tasks.units.hirescam import CAM_AFTER, CAM_BEFORE

AT_START = (
    "The initialization, which is the edited prompt and noise alone, is a success already: "
    "optimization did not cause this change."
)


@dataclass(frozen=True)
class Names:
    """Names from a run's configuration: of the classifier and, for a disagreement, of the second one."""

    classifier: str
    second: str = "the second classifier"


@dataclass(frozen=True)
class Finding:
    """sentence: the result in words; short: the same for a cell of a table; figures: numbers with their labels; note: a
    caveat; image_notes: lines under images, by the images' keys."""

    sentence: str
    short: str
    figures: list[tuple[str, str]] = field(default_factory=list)
    note: str = ""
    image_notes: dict[str, str] = field(default_factory=dict)


def finding(task: str, record: Record, names: Names) -> Finding:
    """The finding of a record; of an unknown task, or of a record without its task's values, the criterion."""
    try:
        return FINDINGS[task](record, names)
    except (KeyError, TypeError):
        criterion = str(record.get("criterion") or "")
        return Finding(criterion[:1].upper() + criterion[1:], str(record.get("verdict") or ""))


def has_original(record: Record) -> bool:
    """Whether a result has an original image, not only generated ones."""
    return ORIGINAL.key in (record.get("images") or {})


STAGE_IMAGES = {ORIGINAL.key: "before", START.key: "start", RESULT.key: "after"}
GENERATED_STAGE_IMAGES = {START.key: "before", RESULT.key: "after"}


def _predictions(record: Record) -> dict[str, str]:
    """The predictions for the original, the initialization and the result, if they were measured."""
    stages = STAGE_IMAGES if has_original(record) else GENERATED_STAGE_IMAGES
    predictions = {key: record.get(f"predicted_{stage}") for key, stage in stages.items()}
    return {key: f"predicted as {label}" for key, label in predictions.items() if label}


def counterfactual(record: Record, names: Names) -> Finding:
    before, after, target = record["predicted_before"], record["predicted_after"], record["target"]
    short = f"{after} {two_digits(record['confidence_after'][after])}"
    if before == target:
        sentence = f"The original is predicted as {target} already, so that no change can be found."
    elif before == after:
        sentence = f"The prediction stays {before}; it does not become {target}."
    elif after == target:
        sentence = f"The prediction changes from {before} to {target}."
    else:
        sentence = f"The prediction changes from {before} to {after}, not to {target}."
    note = AT_START if record.get("success_start") else ""
    return Finding(sentence, short, note=note, image_notes=_predictions(record))


def disagreement(record: Record, names: Names) -> Finding:
    before, after, target = record["gap_before"], record["gap_after"], record["target"]
    first, second = record["predicted_after"], record["second_predicted_after"]
    verb = "grows" if after > before else "falls" if after < before else "stays"
    sentence = (
        f"{names.classifier} predicts {first}, {names.second} predicts {second}; the gap of their confidence in "
        f"{target} {verb} from {two_digits(before)} to {two_digits(after)}."
    )
    figures = [
        (f"Real images nearest to the {kind} with the same disagreement", f"{same} of {count(neighbors, 'image')}")
        for kind, key in (("result", "image_neighbors"), ("prompt", "text_neighbors"))
        if (neighbors := record.get(key)) and (same := record.get(f"{key}_disagreeing")) is not None
    ]
    notes = {START.key: f"gap {two_digits(before)}", RESULT.key: f"gap {two_digits(after)}"}
    return Finding(sentence, f"gap {two_digits(after)}", figures, image_notes=notes)


def unit_visualization(record: Record, names: Names) -> Finding:
    before, after, highest = record["activation_before"], record["activation_after"], record["training_max"]
    share = f", {percent(after / highest, 0)} of the maximum" if highest > 0 else "; the maximum is"
    of_maximum = f"{share} over the training images ({two_digits(highest)})"
    sentence = f"The image activates {record['unit']} to {two_digits(after)}{of_maximum}."
    figures = []
    if "best_word" in record:
        figures.append(("Highest activation of any words", two_digits(record["word_max"])))
    if (z := record.get("activation_zscore")) is not None:
        others = record.get("other_units_zscore")
        beside = "" if others is None else f" (other units: {two_digits(others, '+')})"
        figures.append(("Standard deviations above the training mean", two_digits(z, "+") + beside))
    notes = {
        START.key: f"activation {two_digits(before)}", RESULT.key: f"activation {two_digits(after)}",
        TRAINING_IMAGE.key: f"activation {two_digits(highest)}",
    }  # fmt: skip
    if "word_max" in record:
        notes[BEST_WORD_IMAGE.key] = f"“{record['best_word']}”"
    short = percent(after / highest, 0) + " of the training maximum" if highest > 0 else two_digits(after)
    return Finding(sentence, short, figures, image_notes=notes)


def _steered(record: Record, quantity: str, what: str) -> tuple[str, str]:
    """The sentence about a value that was optimized to rise or to fall, and its change in standard deviations."""
    before, after, std = (record[key] for key in (f"{quantity}_before", f"{quantity}_after", "training_std"))
    verb = "rises" if after > before else "falls" if after < before else "stays"
    change = two_digits((after - before) / std, "+") if std > 0 else ""
    deviations = f" ({change} standard deviations over the training images)" if change else ""
    wanted = "to rise" if record["direction"] == "max" else "to fall"
    values = f"from {two_digits(before)} to {two_digits(after)}"
    sentence = f"The {quantity} of {what} {verb} {values}{deviations}; it was meant {wanted}."
    return sentence, f"{change} SD" if change else two_digits(after)


def unit_counterfactual(record: Record, names: Names) -> Finding:
    sentence, short = _steered(record, "activation", record["unit"])
    stages = STAGE_IMAGES | {ATTACKED.key: "attack"}
    notes = {
        key: f"activation {two_digits(record[f'activation_{stage}'])}" for key, stage in stages.items()
        if f"activation_{stage}" in record
    }  # fmt: skip
    notes |= {
        key: f"{percent(share, 0)} outside the object"
        for key, stage in ((CAM_BEFORE.key, "before"), (CAM_AFTER.key, "after"))
        if (share := record.get(f"cam_share_outside_{stage}")) is not None
    }
    return Finding(sentence, short, image_notes=notes)


def component_counterfactual(record: Record, names: Names) -> Finding:
    what = f"principal component {record['component']} of {record['source']}"
    sentence, short = _steered(record, "contribution", what)
    notes = {key: f"contribution {two_digits(record[f'contribution_{stage}'])}" for key, stage in STAGE_IMAGES.items()}
    return Finding(sentence, short, image_notes=notes)


def class_explanation(record: Record, names: Names) -> Finding:
    score, target, n = record["activation_score"], record["target"], 1 + len(SAMPLES.images(record["images"]))
    plain = (record.get("baseline_prompts") or {}).get("class_name")
    against = "" if plain is None else f", against {two_digits(plain['activation_score'])} for the class name"
    sentence = (
        f"{round(score * n)} of {count(n, 'image')} of the optimized prompt are predicted as {target}: activation "
        f"score {two_digits(score)}{against}."
    )
    note = ""
    if plain is not None and score > plain["activation_score"]:
        note = (
            f"The prompt scores higher than the class name. Where its images show no {target}, the classifier "
            "predicts the class from the context alone."
        )
    return Finding(sentence, f"activation score {two_digits(score)}", note=note)


def audit(record: Record, names: Names) -> Finding:
    r, (low, high), delta = record["r"], record["r_interval"], record["delta"]
    verdict, target = record["verdict"], record["target"]
    interval = f"95\u00a0% interval {two_digits(low)} to {two_digits(high)}"
    sentence = (
        f"{verdict.capitalize()}: {target} covers r\u00a0=\u00a0{two_digits(r)} of the images of this feature "
        f"({interval}; threshold δ\u00a0=\u00a0{delta:g})."
    )
    note = "" if record["activated"] else (
        "The images do not activate the feature enough, so that they say nothing about it: the verdict is undecided."
    )  # fmt: skip
    figures = [
        ("Activation, and its mean in training images of the class",
         f"{two_digits(record['activation'])}, {two_digits(record['class_mean_activation'])}"),
        (f"Images predicted as {target}", percent(record["activation_score"], 0)),
    ]  # fmt: skip
    if record.get("annotation") is not None:
        figures.append(("Human annotation", str(record["annotation"])))
    notes = {TRAINING_IMAGE.key: f"activation {two_digits(record['training_max'])}"}
    return Finding(sentence, f"{verdict}, r {two_digits(r)}", figures, note, notes)


def attention(record: Record, names: Names) -> Finding:
    share, area = percent(record["share_on_object_class"], 0), record["object_area"]
    sentence = (
        f"{share} of the attention to the class name lies on the object, which covers {percent(area, 0)} of the image."
    )
    figures = [
        ("Mean of all words", percent(record["share_on_object_words"], 0)),
        ("Reconstruction", f"PSNR {record['psnr']:.1f} dB"),
    ]
    notes = {key: f"{percent(word_share, 0)} on the object" for key, word_share in record["share_on_object"].items()}
    notes |= {CLASS_NAME_MAP.key: f"{share} on the object"} | _predictions(record)
    return Finding(sentence, f"{share} on the object", figures, image_notes=notes)


def gradients(record: Record, names: Names) -> Finding:
    shares, target = record.get("share_on_object") or {}, record["target"]
    notes = {
        gradient_field(name).key: "; ".join(
            [*([f"{percent(shares[name], 0)} on the object"] if name in shares else []), f"p {p:.2g}"]
        )
        for name, p in record["probability"].items()
    }
    notes[ORIGINAL.key] = f"predicted as {record['predicted_before']}"
    if NO_AUGMENTATION not in shares:
        return Finding(f"Pixels that raise or lower the probability of {target}.", "", image_notes=notes)
    share = percent(shares[NO_AUGMENTATION], 0)
    sentence = (
        f"Without augmentation {share} of the gradient of {target} lies on the object, which covers "
        f"{percent(record['object_area'], 0)} of the image."
    )
    note = "Gray pixels have no influence. Each gradient is divided by its largest value."
    return Finding(sentence, f"{share} on the object", note=note, image_notes=notes)


def concept_effects(record: Record, names: Names) -> Finding:
    return _overlay_effect(record) if record["kind"] == OVERLAY else _phrase_effects(record)


def _phrase_effects(record: Record) -> Finding:
    """The shortcuts of a class, or the strongest effect if there is none."""
    target, similar, rows = record["target"], record["similar_class"], record["effects"]
    found = [row for row in rows if row["found"]]
    strongest = (found or rows)[0]
    size = f"{two_digits(strongest['effect'], '+')} ({_interval(strongest)})"
    if found:
        phrases = ", ".join(f"“{row['concept']}”" for row in found)
        verb = "is a shortcut" if len(found) == 1 else "are shortcuts"
        subject = "it" if len(found) == 1 else f"“{strongest['concept']}”"
        sentence = (
            f"{phrases} {verb} of {target}: {subject} changes its probability by {size}, in images of {target} by "
            f"{two_digits(strongest['effect_on_class'], '+')} and in images of {similar} by "
            f"{two_digits(strongest['effect_on_similar_class'], '+')}."
        )
        short = f"“{strongest['concept']}” {two_digits(strongest['effect'], '+')}"
    else:
        sentence = (
            f"No tested phrase is a shortcut of {target}. The largest effect is {size}, of “{strongest['concept']}”."
        )
        short = "no shortcut"
    pair = record["pairs"][0]
    figures = [
        (f"Images of {target} that are predicted as it", percent(record["recall"], 0)),
        ("Smallest effect that would be detected", two_digits(record["detectable_effect"])),
        (f"“{pair['concept']}” in matched pairs", f"{two_digits(pair['paired_effect'], '+')} ({_interval(pair)})"),
    ]
    for label, key in (("added to images that are predicted as another class", "sufficiency"),
                       (f"removed from images that are predicted as {target}", "necessity")):  # fmt: skip
        if pair[key] is not None:
            figures.append((f"The prediction changes if it is {label}", percent(pair[key], 0)))
    untested = ", ".join(f"“{phrase}”" for phrase in record["untested"])
    note = f"Not tested, since the generator does not show them: {untested}." if untested else ""
    notes = {ORIGINAL.key: f"{target}, then {similar}", RESULT.key: f"“{pair['concept']}”, from the same noise"}
    return Finding(sentence, short, figures, note, notes)


def _overlay_effect(record: Record) -> Finding:
    """The class that an overlay raises most."""
    first, overlay = record["effects"][0], record["overlay"]
    size = f"log-odds {two_digits(first['log_odds_change'], '+')} ({_interval(first)})"
    control = "The control, " if record["is_control"] else ""
    if record["found"]:
        sentence = f"{control}{overlay}, raises {first['class_name']} most: {size}." if control else (
            f"{overlay[:1].upper()}{overlay[1:]} raises {first['class_name']} most: {size}."
        )  # fmt: skip
    else:
        sentence = f"{control}{overlay}, is a shortcut of no class" if control else (
            f"{overlay[:1].upper()}{overlay[1:]} is a shortcut of no class"
        )  # fmt: skip
        sentence += f"; the largest effect is on {first['class_name']}, {size}."
    figures = [("Images", str(record["num_images"]))]
    if record["accuracy_without"] is not None:
        accuracies = (percent(record[f"accuracy_{key}"], 0) for key in ("without", "with"))
        figures.append(("Accuracy without and with it", ", ".join(accuracies)))
    note = "A control should change no prediction." if record["is_control"] else ""
    if record["is_damage"]:
        note = "The whole image is damaged. A class that gains by it is no shortcut: compare the accuracies."
    short = f"{first['class_name']} {two_digits(first['log_odds_change'], '+')}"
    return Finding(sentence, short, figures, note)


def _interval(row: Record) -> str:
    low, high = (two_digits(end, "+") for end in row["interval"])
    return f"95\u00a0% interval {low} to {high}"


FINDINGS: dict[str, Callable[[Record, Names], Finding]] = {
    "uvce": counterfactual,
    "disagreement": disagreement,
    "neuron_vis": unit_visualization,
    "neuron_cf": unit_counterfactual,
    "npca_cf": component_counterfactual,
    "diffexplainer_class": class_explanation,
    "spurious_audit": audit,
    "attention_maps": attention,
    "input_gradients": gradients,
    "concept_effect": concept_effects,
}
