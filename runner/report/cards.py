"""One problem of a run as its page shows it: the finding, images, confidences, the loss and all other values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier_lens.runner.report.card_images import CardImages, card_images
from classifier_lens.runner.report.charts import Chart, charts
from classifier_lens.runner.report.findings import Finding, Names, finding, has_original
from classifier_lens.runner.report.labels import term_label
from classifier_lens.runner.report.tables import Table, plain_values, tables
from classifier_lens.runner.report.wording import format_number
from classifier_lens.runner.result_schema import ResultSchema

# Keys of a result that the card shows elsewhere; other plain values are listed in a table.
CARD_KEYS = frozenset(
    (
        *("name", "success", "success_start", "verdict", "source", "target"),
        *("predicted_before", "predicted_start", "predicted_after"),
        *("confidence_before", "confidence_start", "confidence_after"),
        *("second_confidence_before", "second_confidence_after", "second_predicted_after"),
        *("caption", "prompt", "loss", "warnings", "images", "history", "digest", "file_digests"),
    )
)
PROMPTS = "baseline_prompts"  # a table that is shown, not folded
INITIAL = "initialization"
ROUNDING = 1e-3  # relative, within which the parts of a loss have to add up to its total


@dataclass(frozen=True)
class ConfidenceBar:
    """A class's confidence in [0, 1] by stage: of the original, the initialization where that is an image of its own,
    and the result; None where it was not measured."""

    name: str
    role: str
    stages: list[tuple[str, str, float | None]]


@dataclass(frozen=True)
class LossTerm:
    """A term of a loss; weighted: what it adds to the total, None where weights are not known."""

    name: str
    value: str
    weight: str
    weighted: str | None


@dataclass(frozen=True)
class Card:
    """One problem, ready to be shown. success: None where nothing can succeed; verdict: of an audit; caption_label,
    prompt_label: what these texts are, since a soft prompt has no words."""

    name: str
    title: str
    success: bool | None
    verdict: str
    source: str
    target: str
    finding: Finding
    caption: str
    caption_label: str
    prompt: str
    prompt_label: str
    gallery: CardImages
    bars: list[ConfidenceBar]
    charts: list[Chart]
    loss: list[LossTerm]
    prompts: list[Table]
    values: list[tuple[str, str]]
    tables: list[Table]
    warnings: list[str]


@dataclass(frozen=True)
class Settings:
    """What a run's configuration says about all of its results. task: its name; schema: of its results; weights: of
    loss terms; prompt_label: title of a result's prompt."""

    task: str
    schema: ResultSchema
    names: Names
    weights: Mapping[str, float]
    prompt_label: str


def make_card(folder: Path, record: Mapping[str, Any], settings: Settings) -> Card:
    """A result of a run folder as its page shows it."""
    success = record.get("success")
    result_finding = finding(settings.task, record, settings.names)
    source, target, prompt = (str(record.get(key) or "") for key in ("source", "target", "prompt"))
    caption = str(record.get("caption") or "")
    is_plain = prompt in ("", caption)
    return Card(
        name=str(record.get("name", "")),
        title=_title(record, source, target),
        success=success if isinstance(success, bool) else None,
        verdict=str(record.get("verdict") or ""),
        source=source,
        target=target,
        finding=result_finding,
        caption=caption,
        caption_label="Caption" if has_original(record) else "Prompt" if is_plain else "Prompt template",
        prompt="" if is_plain else prompt,
        prompt_label=settings.prompt_label,
        gallery=card_images(folder, record, settings.schema, result_finding.image_notes),
        bars=confidence_bars(record, settings.names),
        charts=charts(record, target),
        loss=loss_terms(record.get("loss") or {}, settings.weights),
        prompts=tables({PROMPTS: record[PROMPTS]}, settings.schema.labels) if PROMPTS in record else [],
        values=plain_values(record, settings.schema.labels, CARD_KEYS),
        tables=tables(record, settings.schema.labels, CARD_KEYS | {PROMPTS}),
        warnings=[str(warning) for warning in record.get("warnings") or []],
    )


def _title(record: Mapping[str, Any], source: str, target: str) -> str:
    """The unit, the component or the overlay of a result, or its classes."""
    direction = {"max": "higher", "min": "lower"}.get(str(record.get("direction")), "")
    if "component" in record:
        return f"{source}: component {record['component']} {direction}".strip()
    if "unit" in record and source:
        return f"{source}: unit {record['unit']} {direction}".strip()
    if "unit" in record and target != record["unit"]:
        return f"{target}: {record['unit']}"
    if "unit" in record:
        return f"Unit {record['unit']}"
    if overlay := str(record.get("overlay") or ""):
        return overlay[:1].upper() + overlay[1:]
    if source and target:
        return f"{source} → {target}"
    return target or source or str(record.get("name", ""))


def _stages(record: Mapping[str, Any]) -> dict[str, str]:
    """The measured stages of a result with their names. The initialization is a stage of its own if an original was
    edited before the first step and steps followed."""
    names = {"before": "original" if has_original(record) else INITIAL, "start": INITIAL, "after": "result"}
    measured = {stage: name for stage, name in names.items() if record.get(f"confidence_{stage}")}
    if not (record.get("max_steps") and has_original(record)):
        measured.pop("start", None)
    if len({repr(record[f"confidence_{stage}"]) for stage in measured}) == 1 and len(measured) > 1:
        return {"before": names["before"]}  # nothing was changed
    return measured


def confidence_bars(record: Mapping[str, Any], names: Names) -> list[ConfidenceBar]:
    """Confidences by class: the target, the source, then the others by their confidence in the result. Of a
    disagreement, the confidences of both classifiers in the target."""
    if "second_confidence_after" in record:
        return _two_classifiers(record, names)
    stages = _stages(record)
    roles = {record.get("source"): "source", record.get("target"): "target"}
    by_stage = {stage: record[f"confidence_{stage}"] for stage in stages}
    classes = dict.fromkeys(name for confidences in by_stage.values() for name in confidences)
    bars = [
        ConfidenceBar(name, roles.get(name, ""), [(s, stages[s], by_stage[s].get(name)) for s in stages])
        for name in classes
    ]
    rank = {"target": 0, "source": 1, "": 2}
    return sorted(bars, key=lambda bar: (rank[bar.role], -(bar.stages[-1][2] or 0.0)))


def _two_classifiers(record: Mapping[str, Any], names: Names) -> list[ConfidenceBar]:
    target, stages = record.get("target"), {"before": INITIAL, "after": "result"}
    first = [(stage, name, (record.get(f"confidence_{stage}") or {}).get(target)) for stage, name in stages.items()]
    second = [(stage, name, record.get(f"second_confidence_{stage}")) for stage, name in stages.items()]
    return [ConfidenceBar(names.classifier, f"in {target}", first), ConfidenceBar(names.second, f"in {target}", second)]


def loss_terms(parts: Mapping[str, Any] | float, weights: Mapping[str, float]) -> list[LossTerm]:
    """The terms of a loss with their weights, the total last. Weights are left out if the weighted terms do not add up
    to the total. A single number is the total."""
    if not isinstance(parts, Mapping):
        return [LossTerm(term_label("total"), format_number(parts), "", None)]
    terms = {key: value for key, value in parts.items() if key != "total" and isinstance(value, (int, float))}
    total = parts.get("total")
    weighted = {key: weights.get(key, 1.0) * value for key, value in terms.items()}
    adds_up = isinstance(total, (int, float)) and abs(sum(weighted.values()) - total) <= ROUNDING * max(1, abs(total))
    lines = [
        LossTerm(
            term_label(key), format_number(value), f"{weights.get(key, 1.0):g}" if adds_up else "",
            format_number(weighted[key]) if adds_up else None,
        )
        for key, value in terms.items()
    ]  # fmt: skip
    if total is None:
        return lines
    text = format_number(total)
    return [*lines, LossTerm(term_label("total"), "" if adds_up else text, "", text if adds_up else None)]
