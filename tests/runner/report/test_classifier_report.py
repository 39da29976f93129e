"""The page about one classifier: shortcuts in sentences with what speaks against them, and what was not found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from classifier_lens.runner.report.classifier_report import FINDINGS_FILE, read_report_run, write_report_page
from classifier_lens.runner.report.report_findings import Evidence, ReportRun
from tests.runner.report.test_page import NASTY, Page, sentence

RUN = "planted_shipped-mine"


def phrase(concept: str, effect: float, **changes: Any) -> dict[str, Any]:
    return {
        "concept": concept, "factor": "place", "effect": effect, "interval": [effect - 0.1, effect + 0.1],
        "p_value": 1e-9, "effect_on_class": effect, "effect_on_similar_class": effect, "share_generated": 1.0,
        "tested": True, "found": effect >= 0.3, **changes,
    }  # fmt: skip


def of_class(target: str, similar: str, *effects: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What concept_effect writes about the phrases of a class."""
    pair = {
        "concept": effects[0]["concept"], "paired_effect": 0.5, "interval": [0.3, 0.7], "sufficiency": 0.75,
        "sufficiency_interval": [0.5, 0.9], "necessity": 0.625, "necessity_interval": [0.3, 0.9],
    }  # fmt: skip
    return {
        "name": target.replace(" ", "-"), "kind": "phrases", "target": target, "similar_class": similar,
        "found": [e["concept"] for e in effects if e["found"]], "recall": 0.9, "num_images": 128,
        "effects": list(effects), "pairs": [pair], "untested": [e["concept"] for e in effects if not e["tested"]],
        "detectable_effect": 0.2, **changes,
    }  # fmt: skip


def of_overlay(
    overlay: str, change: float, is_control: bool = False, probability: float = 0.2, is_damage: bool = False
) -> dict[str, Any]:
    row = {
        "class_name": "carton", "rank": 1, "log_odds_change": change, "interval": [change - 0.1, change + 0.1],
        "p_value": 1e-9, "probability_change": probability, "found": change >= 1,
    }  # fmt: skip
    return {
        "name": f"overlay-{overlay.replace(' ', '-')}", "kind": "overlay", "overlay": overlay, "num_images": 49,
        "is_control": is_control, "is_damage": is_damage, "found": ["carton"] if change >= 1 else [],
        "accuracy_without": None, "accuracy_with": None, "effects": [row],
    }  # fmt: skip


SAND = of_class("fiddler crab", "rock crab", phrase("on sand", 0.56), phrase("in snow", 0.1))
NOTHING = of_class("rock crab", "fiddler crab", phrase("on sand", 0.1), phrase("a tiny hat", 0.05, tested=False))
AUDITED = {"name": "a", "target": "fiddler crab", "verdict": "spurious"}


def written(tmp_path: Path, task: str, records: Sequence[Mapping[str, Any]]) -> ReportRun:
    """A run of the report, written as the runner writes it."""
    folder = tmp_path / task / RUN / "c0ffee"
    (folder / "attempts").mkdir(parents=True)
    lines = []
    for record in records:
        images = {key: f"images/{record['name']}/{key}.png" for key in ("original", "result")}
        for path in images.values():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (320, 64), "teal").save(folder / path)
        lines.append(json.dumps({**record, "images": images}))
    (folder / "results.jsonl").write_text("\n".join(lines))
    settings = {"options": {"task": task}, "task": {"effect_threshold": 0.3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    shortcuts = [{"concept": "on sand", "effect": 0.5}, {"concept": "a tag"}]
    (folder / "summary.json").write_text(json.dumps({"shortcuts": shortcuts}))
    (folder / "attempts" / "0.json").write_text(json.dumps({"started_at": 10.0, "updated_at": 52.0}))
    words = [f"experiment=report/{task}", "classifier=mine"]
    return read_report_run(task, words, folder, "", tmp_path / "report" / "mine")


def page_of(tmp_path: Path, *runs: ReportRun, only: Sequence[str] | None = None, name: str = "mine") -> Page:
    evidence = Evidence(name, "planted_clean", {run.task: run for run in runs}, tmp_path / "report" / "mine")
    return Page(write_report_page(evidence, "python run.py experiment=report", only).read_text(encoding="utf-8"))


def test_a_shortcut_is_a_sentence_with_images_numbers_and_a_command(tmp_path: Path) -> None:
    disagreeing = {"name": "d", "target": "fiddler crab", "success": True, "second_predicted_after": "viaduct"}
    page = page_of(
        tmp_path, written(tmp_path, "concept_effect", [SAND, NOTHING]),
        written(tmp_path, "spurious_audit", [AUDITED, {**AUDITED, "name": "b", "verdict": "core"}]),
        written(tmp_path, "disagreement", [disagreeing]),
    )  # fmt: skip
    text = sentence(page)
    for part in (
        "mine has 1 shortcut: fiddler crab is predicted from “on sand” (+0.56).",
        "raises the probability of fiddler crab by 0.56 [0.46, 0.66] on average, in images of fiddler crab and of rock",
        "Without it, 62 % of the images that are predicted as fiddler crab lose this prediction.",
        "With it, 75 % of the images that are predicted as another class become fiddler crab.",
        "1 of 2 audited features responds to something other than fiddler crab.",
        "Only mine predicts fiddler crab",
        "planted_clean: viaduct",
    ):
        assert part in text, part
    assert "python run.py experiment=report/concept_effect classifier=mine 'task.classes=[fiddler crab]'" in page.text
    assert "What speaks against it" not in text and "Missing parts" not in text
    images = [Path(link) for link in page.links if link.endswith(".png")]
    assert len(images) == 2 * 3  # each is a link and an image
    assert all((tmp_path / "report" / "mine" / image).is_file() for image in images)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    pages = [link for link in page.links if link.endswith("index.html")]
    assert pages == [
        f"../../{task}/{RUN}/c0ffee/index.html" for task in ("concept_effect", "spurious_audit", "disagreement")
    ]
    findings = json.loads((tmp_path / "report" / "mine" / FINDINGS_FILE).read_text())
    assert [(row["kind"], row["concept"]) for row in findings] == [
        ("phrase", "on sand"), ("mark", "a tag"),
    ]  # fmt: skip


@pytest.mark.parametrize(("changes", "row", "line"), [
    ({"recall": 0.4}, {}, "Only 40 % of the generated images of fiddler crab are predicted as it."),
    ({}, {"interval": [0.2, 0.4]}, "The interval contains effects below the threshold of 0.3."),
    ({}, {"interval": [0.31, 0.9]}, "The interval is wide"),
    ({}, {"effect_on_similar_class": 0.01}, "almost only in images of fiddler crab (+0.56 against +0.01)"),
    ({}, {"effect_on_class": 0.01}, "almost only in images of rock crab"),
    ({}, {"share_generated": None}, "It was not checked whether the generator shows the phrase."),
    ({}, {"share_generated": 0.6}, "The generator shows the phrase in only 60 % of the images."),
])  # fmt: skip
def test_what_speaks_against_a_shortcut(
    changes: dict[str, Any], row: dict[str, Any], line: str, tmp_path: Path
) -> None:
    record = of_class("fiddler crab", "rock crab", phrase("on sand", 0.56, **row), **changes)
    text = sentence(page_of(tmp_path, written(tmp_path, "concept_effect", [record])))
    assert text.count(line) == 1 and "What speaks against it" in text


def test_an_audit_that_calls_all_features_core_speaks_against_a_shortcut(tmp_path: Path) -> None:
    runs = [
        written(tmp_path, "concept_effect", [SAND]),
        written(tmp_path, "spurious_audit", [{**AUDITED, "verdict": "core"}]),
    ]
    assert "The audit calls 1 of 1 feature core" in page_of(tmp_path, *runs).text


def test_what_was_not_found_and_not_tested(tmp_path: Path) -> None:
    weak = {**NOTHING, "name": "urn", "target": "urn", "detectable_effect": 0.5}
    page = page_of(tmp_path, written(tmp_path, "concept_effect", [NOTHING, weak]), only=["rock crab", "urn"])
    text = sentence(page)
    assert (
        "No shortcut was found in mine: none of 1 phrase raises the probability of one of 2 classes by 0.3 or more."
        in text
    )
    assert "None: no tested phrase raises the probability of a class by 0.3 or more" in text
    assert text.index("0.50 (weak test)") < text.index("rock crab“on sand”0.10 [0.00, 0.20]90 %0.20")
    assert "Only 1 phrase was tested: on sand." in text
    assert "“a tiny hat” was not tested, since the generator does not show it in images of rock crab, urn." in text
    assert "Only these classes were tested with phrases: rock crab, urn." in text
    assert "No overlay was tested" in text


def test_without_a_generator_the_page_says_what_could_not_be_tested(tmp_path: Path) -> None:
    records = [
        of_overlay("a blur", 3.2, probability=0.01, is_damage=True), of_overlay("the text 捷径", 2.77),
        of_overlay("a tag", 0.1),
        of_overlay("mirroring", 0.05, is_control=True),
    ]  # fmt: skip
    left_out = ReportRun("spurious_audit", [], problem="Left out, since it needs a generator")
    page = page_of(tmp_path, written(tmp_path, "concept_effect", records), left_out)
    text = sentence(page)
    assert "1 of 2 marks raises a class of mine: the text 捷径 raises carton." in text
    order = (
        "Marks that raise a class", "The text 捷径 raises carton most: log-odds +2.77", "Classes that damaged images",
        "A blur raises carton most", "The probability of carton rises by 0.01 only", "Controls",
        "The control, mirroring, is a shortcut of no class", "What was not found",
        "These marks raise no class enough, in log-odds: a tag (at most +0.10, on carton).",
        "Audit of the most important features: Left out, since it needs a generator.",
    )  # fmt: skip
    assert (places := [text.index(part) for part in order]) == sorted(places)
    assert "need a generator of images" in text and "Missing parts" not in text and "largest effect first" not in text


def test_a_failed_run_costs_the_others_nothing(tmp_path: Path) -> None:
    lost = read_report_run("uvce", ["x"], tmp_path / "lost", "the network failed", tmp_path)
    page = page_of(tmp_path, written(tmp_path, "concept_effect", [SAND]), lost)
    assert "Counterfactuals: the network failed" in sentence(page) and "on sand" in page.text
    nothing = page_of(tmp_path, read_report_run("concept_effect", ["x"], None, "no images", tmp_path))
    assert "Nothing could be measured." in nothing.text and "Concept effects: no images" in sentence(nothing)


def test_counterfactuals_are_shown_with_what_a_failure_means(tmp_path: Path) -> None:
    record = {
        "name": "a", "success": False, "source": "rock crab", "target": "urn", "predicted_before": "rock crab",
        "predicted_start": "rock crab", "predicted_after": "rock crab", "confidence_after": {"rock crab": 0.9},
    }  # fmt: skip
    page = page_of(tmp_path, written(tmp_path, "concept_effect", [SAND]), written(tmp_path, "uvce", [record]))
    assert "The prediction stays rock crab; it does not become urn." in page.text
    assert "If the counterfactual shows urn, the classifier looks at something else." in page.text


def test_names_are_text(tmp_path: Path) -> None:
    record = of_class(NASTY, "rock crab", phrase(NASTY, 0.5))
    page = page_of(tmp_path, written(tmp_path, "concept_effect", [{**record, "name": "a"}]), name=NASTY)
    assert NASTY in page.text and not [a for tag, a in page.tags if tag == "img" and "onerror" in a]
