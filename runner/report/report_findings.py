"""Findings of a report about one classifier, in sentences: each shortcut with its numbers, its images and what speaks
against it, and what was not found."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from classifier_lens.runner.configuration.override_errors import list_override
from classifier_lens.runner.report.card_images import CardImage
from classifier_lens.runner.report.findings import Names, finding
from classifier_lens.runner.report.wording import count, percent, share_of, two_digits
from classifier_lens.runner.result_schema import ORIGINAL, RESULT, ImageField, Record
from classifier_lens.runner.results.reader import RunResults
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.analysis.verdict import CORE, SPURIOUS
from classifier_lens.tasks.interventions.effect_records import OVERLAY, PHRASES

MIN_RECALL = 0.5  # of the class in its generated images, below which a caveat is written
MAX_WIDTH = 0.3  # of an interval of an effect on a probability, above which a caveat is written
MIN_SHARE = 0.25  # of the effect in images of the class, below which that in images of the similar class is a caveat
MIN_SHARE_GENERATED = 0.8  # of the images that show the phrase, below which a caveat is written
MIN_PROBABILITY_CHANGE = 0.05  # by an overlay, below which a caveat is written


@dataclass(frozen=True)
class ReportRun:
    """One run of a report. task: its name; words: of its command; results: None if there are none; problem: why not,
    in a sentence without its period; seconds: of all its starts; page: address relative to the report."""

    task: str
    words: Sequence[str]
    results: RunResults | None = None
    problem: str = ""
    seconds: float | None = None
    page: str = ""

    @property
    def command(self) -> str:
        """The command that repeats or continues the run; empty for a run that was left out."""
        return shlex.join(["python", "run.py", *self.words]) if self.words else ""

    @property
    def is_left_out(self) -> bool:
        """Whether the report did not try the run."""
        return not self.words

    @property
    def records(self) -> Sequence[Record]:
        """The results, none without a run."""
        return () if self.results is None else self.results.records


@dataclass(frozen=True)
class ReportFinding:
    """A finding as the page shows it. effect: its size, by which findings are ranked; against: sentences about what
    speaks against it; command: repeats its measurement alone, empty if none does."""

    title: str
    sentences: list[str]
    effect: float
    figures: list[tuple[str, str]]
    against: list[str] = field(default_factory=list)
    images: list[CardImage] = field(default_factory=list)
    command: str = ""


@dataclass(frozen=True)
class Evidence:
    """The runs of a report by task. reference: name of the reference network, None without one; folder: of the page, to
    which addresses are relative."""

    classifier: str
    reference: str | None
    runs: Mapping[str, ReportRun]
    folder: Path

    def records(self, task: str, **values: object) -> list[Record]:
        """The results of a task with these values."""
        run = self.runs.get(task)
        return [r for r in (run.records if run else ()) if all(r.get(key) == value for key, value in values.items())]

    def overlays(self, is_damage: bool) -> list[Record]:
        """The results of overlays without controls: of marks, or of damages of the whole image."""
        return self.records("concept_effect", kind=OVERLAY, is_control=False, is_damage=is_damage)

    @property
    def names(self) -> Names:
        """The classifier and the reference network."""
        return Names(self.classifier, self.reference or Names.second)

    def image(self, task: str, record: Record, key: ImageField, caption: str, note: str = "") -> list[CardImage]:
        """An image of a result under another caption; none, if the file is missing."""
        results = self.runs[task].results
        assert results is not None, "a record has its run"
        try:
            path = results.image_path(record, key)
            with Image.open(path, formats=["PNG"]) as image:
                size = image.size
        except (UserError, OSError):
            return []
        href = quote(Path(os.path.relpath(path, self.folder)).as_posix())
        return [CardImage(ImageField(key.key, caption), f"{caption}: {note}" if note else caption, href, *size, note)]


# --- shortcuts -----------------------------------------------------------------------------------------------


def phrase_findings(evidence: Evidence, effect_threshold: float) -> list[ReportFinding]:
    """The shortcuts of all classes that phrases name, the largest effect first."""
    findings = [
        _phrase_finding(evidence, record, row, effect_threshold)
        for record in evidence.records("concept_effect", kind=PHRASES)
        for row in record["effects"]
        if row["found"]
    ]
    return sorted(findings, key=lambda one: -one.effect)


def _phrase_finding(evidence: Evidence, record: Record, row: Record, effect_threshold: float) -> ReportFinding:
    target, similar, concept = record["target"], record["similar_class"], row["concept"]
    pair = next((p for p in record["pairs"] if p["concept"] == concept), None)
    audited = evidence.records("spurious_audit", target=target)
    spurious = [r for r in audited if r["verdict"] == SPURIOUS]
    sentences = [
        f"Adding it to an image raises the probability of {target} by {two_digits(row['effect'])} "
        f"{_interval(row['interval'])} on average, in images of {target} and of {similar}."
    ]
    if pair is not None and pair["necessity"] is not None:
        sentences.append(
            f"Without it, {percent(pair['necessity'], 0)} of the images that are predicted as {target} lose this "
            "prediction."
        )
    if pair is not None and pair["sufficiency"] is not None:
        sentences.append(
            f"With it, {percent(pair['sufficiency'], 0)} of the images that are predicted as another class become "
            f"{target}."
        )
    if spurious:
        features = share_of(len(spurious), len(audited), "audited feature", "responds", "respond")
        sentences.append(f"{features} to something other than {target}.")
    return ReportFinding(
        f"{target} is predicted from “{concept}”", sentences, row["effect"], _phrase_figures(record, row, pair),
        _against_phrase(evidence, record, row, pair, audited, effect_threshold),
        _phrase_images(evidence, record, row), _class_command(evidence, target),
    )  # fmt: skip


def _phrase_figures(record: Record, row: Record, pair: Record | None) -> list[tuple[str, str]]:
    figures = [
        (f"Effect in images of {record['target']}", two_digits(row["effect_on_class"], "+")),
        (f"Effect in images of {record['similar_class']}", two_digits(row["effect_on_similar_class"], "+")),
        ("Corrected p-value", f"{row['p_value']:.1g}"),
    ]
    if pair is not None:
        figures.append(
            ("Effect in matched pairs", f"{two_digits(pair['paired_effect'], '+')} {_interval(pair['interval'])}")
        )
        figures += [
            (label, f"{percent(pair[key], 0)} {_interval(pair[f'{key}_interval'])}")
            for label, key in (("Prediction lost without it", "necessity"), ("Prediction won with it", "sufficiency"))
            if pair[key] is not None
        ]
    return figures


def _against_phrase(
    evidence: Evidence, record: Record, row: Record, pair: Record | None, audited: Sequence[Record], threshold: float
) -> list[str]:
    """What speaks against a shortcut."""
    target, similar, (low, high) = record["target"], record["similar_class"], row["interval"]
    on_class, on_similar = row["effect_on_class"], row["effect_on_similar_class"]
    sentences = []
    if record["recall"] < MIN_RECALL:
        sentences.append(
            f"Only {percent(record['recall'], 0)} of the generated images of {target} are predicted as it. This may be "
            "due to the shortcut, but also to a generator that draws the class badly."
        )
    if low < threshold:
        sentences.append(f"The interval contains effects below the threshold of {threshold:g}.")
    if high - low > MAX_WIDTH:
        sentences.append("The interval is wide: more images per phrase make it narrower.")
    if min(on_class, on_similar) < MIN_SHARE * max(on_class, on_similar):
        alone = target if on_class > on_similar else similar
        sentences.append(
            f"The effect is almost only in images of {alone} ({two_digits(max(on_class, on_similar), '+')} against "
            f"{two_digits(min(on_class, on_similar), '+')}): alone the phrase may not be sufficient."
        )
    if pair is not None and pair["interval"][0] <= 0:
        sentences.append("In matched pairs the interval of the effect contains 0.")
    share = row["share_generated"]
    if share is None:
        sentences.append("It was not checked whether the generator shows the phrase.")
    elif share < MIN_SHARE_GENERATED:
        sentences.append(f"The generator shows the phrase in only {percent(share, 0)} of the images.")
    if audited and all(r["verdict"] == CORE for r in audited):
        sentences.append(
            f"The audit calls {len(audited)} of {count(len(audited), 'feature')} core: their images show {target}. A "
            "shortcut on or beside the object looks the same to it."
        )
    return sentences


def _phrase_images(evidence: Evidence, record: Record, row: Record) -> list[CardImage]:
    """Pairs without and with the phrase, and an image of a disagreement."""
    target, similar, concept = record["target"], record["similar_class"], row["concept"]
    images: list[CardImage] = []
    if concept == record["pairs"][0]["concept"]:  # the images of a result are those of its strongest phrase
        what = f"{target}, then {similar}"
        images += evidence.image("concept_effect", record, ORIGINAL, f"Without “{concept}”", what)
        images += evidence.image("concept_effect", record, RESULT, f"With “{concept}”", what)
    names = evidence.names
    for gap in evidence.records("disagreement", target=target, success=True)[:1]:
        note = f"{names.second}: {gap['second_predicted_after']}"
        images += evidence.image("disagreement", gap, RESULT, f"Only {names.classifier} predicts {target}", note)
    return images


def _class_command(evidence: Evidence, target: str) -> str:
    """The command that measures the effects on one class."""
    words = [w for w in evidence.runs["concept_effect"].words if not w.startswith("task.classes=")]
    return shlex.join(["python", "run.py", *words, list_override("task.classes", [target])])


# --- overlays ------------------------------------------------------------------------------------------------


def overlay_findings(evidence: Evidence, is_damage: bool) -> list[ReportFinding]:
    """The marks, or the damages of the whole image, that raise a class, the largest change of its log-odds first."""
    findings = [_overlay_finding(evidence, record) for record in evidence.overlays(is_damage) if record["found"]]
    return sorted(findings, key=lambda one: -one.effect)


def control_findings(evidence: Evidence) -> list[ReportFinding]:
    """The effects of all controls."""
    controls = evidence.records("concept_effect", kind=OVERLAY, is_control=True)
    return [_overlay_finding(evidence, record) for record in controls]


def _overlay_finding(evidence: Evidence, record: Record) -> ReportFinding:
    first, overlay = record["effects"][0], record["overlay"]
    measured = finding("concept_effect", record, evidence.names)
    others = [
        f"{row['class_name']} ({two_digits(row['log_odds_change'], '+')})"
        for row in record["effects"][1:] if row["found"]
    ]  # fmt: skip
    sentences = [measured.sentence]
    if others:
        sentences.append(f"It also raises {', '.join(others)}.")
    against = []
    if record["found"] and not record["is_control"] and first["probability_change"] < MIN_PROBABILITY_CHANGE:
        against.append(
            f"The probability of {first['class_name']} rises by {max(first['probability_change'], 0):.1g} only, on "
            "average: few of these images are predicted as it."
        )
    if record["found"] and record["is_control"]:
        against.append(
            "The control raises a class, although it should not: effects of overlays of this size mean nothing."
        )
    images = evidence.image("concept_effect", record, ORIGINAL, "Without it")
    images += evidence.image("concept_effect", record, RESULT, f"With {overlay}")
    figures = [
        *measured.figures,
        (f"Probability of {first['class_name']}", two_digits(first["probability_change"], "+")),
    ]
    return ReportFinding(
        overlay[:1].upper() + overlay[1:], sentences, first["log_odds_change"], figures, against, images
    )  # fmt: skip


# --- counterfactuals -----------------------------------------------------------------------------------------


def counterfactual_findings(evidence: Evidence) -> list[ReportFinding]:
    """What changed in real images for another prediction."""
    findings = []
    for record in evidence.records("uvce"):
        measured = finding("uvce", record, evidence.names)
        sentences = [measured.sentence]
        if not record["success"]:
            sentences.append(f"If the counterfactual shows {record['target']}, the classifier looks at something else.")
        images = evidence.image("uvce", record, ORIGINAL, f"Original, {record['source']}")
        images += evidence.image("uvce", record, RESULT, f"Counterfactual for {record['target']}")
        findings.append(
            ReportFinding(f"{record['source']} → {record['target']}", sentences, 0.0, measured.figures, [], images)
        )
    return findings


# --- what was not found --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassWithout:
    """A class without a shortcut: its largest effect and the smallest one that the tests would have detected."""

    name: str
    concept: str
    effect: float
    interval: str
    detectable: float
    recall: float


def classes_without(evidence: Evidence) -> list[ClassWithout]:
    """The classes of which no tested phrase is a shortcut, those that were tested worst first."""
    rows = []
    for record in evidence.records("concept_effect", kind=PHRASES):
        tested = [row for row in record["effects"] if row["tested"]]
        if record["found"] or not tested:
            continue
        best = tested[0]
        rows.append(ClassWithout(
            record["target"], best["concept"], best["effect"], _interval(best["interval"]),
            record["detectable_effect"], record["recall"],
        ))  # fmt: skip
    return sorted(rows, key=lambda row: -row.detectable)


def marks_without(evidence: Evidence) -> list[str]:
    """The marks that raise no class, each with its largest effect."""
    return [
        f"{record['overlay']} (at most {two_digits(record['effects'][0]['log_odds_change'], '+')}, on "
        f"{record['effects'][0]['class_name']})"
        for record in evidence.overlays(is_damage=False) if not record["found"]
    ]  # fmt: skip


def tested_phrases(evidence: Evidence) -> list[str]:
    """All phrases that were tested for a class."""
    return list(dict.fromkeys(row["concept"] for row in _rows(evidence) if row["tested"]))


def untested_phrases(evidence: Evidence) -> list[tuple[str, list[str]]]:
    """The phrases that the generator does not show, with the classes of these images."""
    untested: dict[str, list[str]] = {}
    for record in evidence.records("concept_effect", kind=PHRASES):
        for phrase in record["untested"]:
            untested.setdefault(phrase, []).append(record["target"])
    return list(untested.items())


def _rows(evidence: Evidence) -> Iterator[Mapping[str, Any]]:
    for record in evidence.records("concept_effect", kind=PHRASES):
        yield from record["effects"]


# --- the first sentence --------------------------------------------------------------------------------------


def report_sentence(evidence: Evidence, shortcuts: Sequence[ReportFinding], effect_threshold: float) -> str:
    """How many shortcuts were found, and the strongest ones."""
    classes = evidence.records("concept_effect", kind=PHRASES)
    if not classes:
        return overlay_sentence(evidence)
    if not shortcuts:
        return (
            f"No shortcut was found in {evidence.classifier}: none of {count(len(tested_phrases(evidence)), 'phrase')} "
            f"raises the probability of one of {count(len(classes), 'class')} by {effect_threshold:g} or more."
        )
    strongest = "; ".join(f"{one.title} ({two_digits(one.effect, '+')})" for one in shortcuts[:4])
    more = "" if len(shortcuts) <= 4 else "; and others"
    return f"{evidence.classifier} has {count(len(shortcuts), 'shortcut')}: {strongest}{more}."


def overlay_sentence(evidence: Evidence) -> str:
    """How many marks raise a class, and the strongest ones; empty without any mark."""
    marks = evidence.overlays(is_damage=False)
    if not marks:
        return ""
    found = sorted((r for r in marks if r["found"]), key=lambda r: -r["effects"][0]["log_odds_change"])
    listed = "; ".join(f"{r['overlay']} raises {r['effects'][0]['class_name']}" for r in found[:3])
    number = share_of(len(found), len(marks), "mark", "raises", "raise")
    return f"{number} a class of {evidence.classifier}{': ' if listed else ''}{listed}."


def _interval(ends: Sequence[float]) -> str:
    low, high = (two_digits(round(end, 2) + 0.0) for end in ends)  # no −0.00
    return f"[{low}, {high}]"
