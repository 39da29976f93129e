"""What a problem's result says: a sentence for each task, key numbers and lines under its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from classifier_lens.runner.report.labels import NO_AUGMENTATION
from classifier_lens.runner.report.wording import count, percent, two_digits

Record = Mapping[str, Any]
AT_START = (
    "The initialization, which is the edited prompt and noise alone, is a success already: "
    "optimization did not cause this change."
)


@dataclass(frozen=True)
class Names:
    """What a run's configuration calls its parts: the classifier and, for a disagreement, the second one."""

    classifier: str
    second: str = "the second classifier"


@dataclass(frozen=True)
class Finding:
    """sentence: the result in words; short: the same for a cell of a table; figures: numbers with their labels;
    note: how far the sentence can be trusted; captions: a line under images, by their names."""

    sentence: str
    short: str
    figures: list[tuple[str, str]] = field(default_factory=list)
    note: str = ""
    captions: dict[str, str] = field(default_factory=dict)


def finding(task: str, record: Record, names: Names) -> Finding:
    """What a record says. A record without its task's values, or of another task, is told by its criterion."""
    try:
        found = FINDINGS[task](record, names)
    except (KeyError, TypeError):
        criterion = str(record.get("criterion") or "")
        found = Finding(criterion[:1].upper() + criterion[1:], str(record.get("verdict") or ""))
    return found


def _predictions(record: Record) -> dict[str, str]:
    """What the original, the initialization and the result are predicted as, where that was measured."""
    stages = {"original": "before", "start": "start", "best": "after"}
    if "original" not in (record.get("images") or {}):
        stages = {"start": "before", "best": "after"}
    told = {key: record.get(f"predicted_{stage}") for key, stage in stages.items()}
    return {key: f"predicted as {label}" for key, label in told.items() if label}


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
    return Finding(sentence, short, note=note, captions=_predictions(record))


def disagreement(record: Record, names: Names) -> Finding:
    before, after, target = record["gap_before"], record["gap_after"], record["target"]
    first, second = record["predicted_after"], record["second_predicted_after"]
    verb = "grows" if after > before else "falls" if after < before else "stays"
    sentence = (
        f"{names.classifier} predicts {first}, {names.second} predicts {second}; the gap of their confidence in "
        f"{target} {verb} from {two_digits(before)} to {two_digits(after)}."
    )
    figures = [
        (f"Real images nearest to the {kind} with the same disagreement", f"{same} of {count(found, 'image')}")
        for kind, key in (("result", "image_neighbors"), ("prompt", "text_neighbors"))
        if (found := record.get(key)) and (same := record.get(f"{key}_disagreeing")) is not None
    ]
    captions = {"start": f"gap {two_digits(before)}", "best": f"gap {two_digits(after)}"}
    return Finding(sentence, f"gap {two_digits(after)}", figures, captions=captions)


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
    captions = {
        "start": f"activation {two_digits(before)}", "best": f"activation {two_digits(after)}",
        "training": f"activation {two_digits(highest)}",
    }  # fmt: skip
    if "word_max" in record:
        captions["best_word"] = f"“{record['best_word']}”"
    short = percent(after / highest, 0) + " of the training maximum" if highest > 0 else two_digits(after)
    return Finding(sentence, short, figures, captions=captions)


def _steered(record: Record, quantity: str, what: str) -> tuple[str, str]:
    """The sentence of a value that was meant to rise or to fall, and its change in standard deviations."""
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
    stages = {"original": "before", "start": "start", "best": "after", "attack": "attack"}
    captions = {
        key: f"activation {two_digits(record[f'activation_{stage}'])}" for key, stage in stages.items()
        if f"activation_{stage}" in record
    }  # fmt: skip
    captions |= {
        f"cam-{when}": f"{percent(share, 0)} outside the object"
        for when in ("before", "after")
        if (share := record.get(f"cam_share_outside_{when}")) is not None
    }
    return Finding(sentence, short, captions=captions)


def component_counterfactual(record: Record, names: Names) -> Finding:
    what = f"principal component {record['component']} of {record['source']}"
    sentence, short = _steered(record, "contribution", what)
    stages = {"original": "before", "start": "start", "best": "after"}
    captions = {key: f"contribution {two_digits(record[f'contribution_{stage}'])}" for key, stage in stages.items()}
    return Finding(sentence, short, captions=captions)


def images_of_prompt(record: Record) -> int:
    """How many images a prompt's score was measured on: the result and its samples."""
    return sum(key == "best" or key.startswith("sample_") for key in record["images"])


def class_explanation(record: Record, names: Names) -> Finding:
    score, target, n = record["activation_score"], record["target"], images_of_prompt(record)
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
    captions = {"training": f"activation {two_digits(record['training_max'])}"}
    return Finding(sentence, f"{verdict}, r {two_digits(r)}", figures, note, captions)


def attention(record: Record, names: Names) -> Finding:
    own, area = record["share_on_object_class"], record["object_area"]
    sentence = (
        f"{percent(own, 0)} of the attention to the class name lies on the object, which covers {percent(area, 0)} "
        "of the image."
    )
    figures = [
        ("Mean of all words", percent(record["share_on_object_words"], 0)),
        ("Reconstruction", f"PSNR {record['psnr']:.1f} dB"),
    ]
    captions = {name: f"{percent(share, 0)} on the object" for name, share in record["share_on_object"].items()}
    captions |= {"class": f"{percent(own, 0)} on the object"} | _predictions(record)
    return Finding(sentence, f"{percent(own, 0)} on the object", figures, captions=captions)


def gradients(record: Record, names: Names) -> Finding:
    shares, target = record.get("share_on_object") or {}, record["target"]
    captions = {
        f"gradient-{name}": "; ".join(
            [*([f"{percent(shares[name], 0)} on the object"] if name in shares else []), f"p {p:.2g}"]
        )
        for name, p in record["probability"].items()
    }
    captions["original"] = f"predicted as {record['predicted_before']}"
    if NO_AUGMENTATION not in shares:
        return Finding(f"Pixels that speak for or against {target}.", "", captions=captions)
    own = percent(shares[NO_AUGMENTATION], 0)
    sentence = (
        f"Without augmentation {own} of the gradient of {target} lies on the object, which covers "
        f"{percent(record['object_area'], 0)} of the image."
    )
    note = "Gray pixels have no influence. Each gradient is divided by its largest value."
    return Finding(sentence, f"{own} on the object", note=note, captions=captions)


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
}
