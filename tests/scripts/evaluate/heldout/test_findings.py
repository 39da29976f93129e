"""Records of concept effects as findings."""

from __future__ import annotations

from typing import Any

from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.scripts.evaluate.heldout.exact_effects import Cell
from classifier_lens.scripts.evaluate.heldout.findings import VALUES_BY_PHRASE, read_concept_effects


def row(concept: str, effect: float, found: bool = False, tested: bool = True) -> dict[str, Any]:
    return {"concept": concept, "factor": "any", "effect": effect, "found": found, "tested": tested}


def test_phrases_become_values_and_what_was_not_tested_has_no_effect() -> None:
    records: list[dict[str, Any]] = [
        {
            "kind": "phrases", "target": "viaduct",
            "effects": [
                row("on sand", 0.6, True), row("with a flag", 0.4, True), row("red", -0.2),
                row("grey", 0.1, tested=False),
            ],
        },
        {"kind": "phrases", "target": "partridge", "effects": [row("in snow", 0.1)]},
        {"kind": "overlay", "overlay": "a red border", "effects": [row("viaduct", 1.0, True)]},
    ]  # fmt: skip
    result = read_concept_effects(records)
    assert result.found == {"viaduct": [("background", "sand"), ("prop", "flag")]}
    assert result.effects == {
        Cell("viaduct", "background", "sand"): 0.6, Cell("viaduct", "prop", "flag"): 0.4,
        Cell("viaduct", "hue", "red"): -0.2, Cell("partridge", "background", "snow"): 0.1,
    }  # fmt: skip


def test_the_phrases_of_the_world_have_a_value() -> None:
    phrases = compose_config([])["phrases"]
    assert {*phrases["places"], *phrases["co_occurring"]} <= set(VALUES_BY_PHRASE)
