"""What `task=concept_effect` finds in the networks of the held-out suite, read from the records of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from classifier_lens.data import planted
from classifier_lens.scripts.evaluate.heldout.exact_effects import Cell, Effects

Record = Mapping[str, Any]
PHRASES = "phrases"  # kind of the records that hold effects of phrases
# The phrases by which a prompt of the planted world names a value of a factor.
VALUES_BY_PHRASE: Mapping[str, tuple[str, str]] = {
    **{phrase: ("background", value) for value, phrase in planted.BACKGROUND_PHRASES.items()},
    **{f"with {phrase}": ("prop", value) for value, phrase in planted.PROP_PHRASES.items()},
    **{value: ("hue", value) for value in planted.HUES},
}


@dataclass(frozen=True)
class ToolResult:
    """What a tool reports of one network.

    Args:
        found: the values that it calls shortcuts, by class.
        effects: the effects that it measured, also of values that are no shortcuts.
    """

    found: Mapping[str, Sequence[tuple[str, str]]]
    effects: Effects


def read_concept_effects(records: Sequence[Record]) -> ToolResult:
    """The findings and effects in the records of a run of `task=concept_effect`. Effects that count as untested are
    left out."""
    found: dict[str, list[tuple[str, str]]] = {}
    effects = {}
    for record in records:
        if record["kind"] != PHRASES:
            continue
        name = record["target"]
        for row in record["effects"]:
            factor, value = VALUES_BY_PHRASE[row["concept"]]
            if row["tested"]:
                effects[Cell(name, factor, value)] = row["effect"]
            if row["found"]:
                found.setdefault(name, []).append((factor, value))
    return ToolResult(found, effects)
