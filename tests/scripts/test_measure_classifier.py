"""The facts of what was planted in the shipped classifiers, measured again."""

from __future__ import annotations

import json

from data import planted
from models.zoo import SHIPPED, load_shipped
from scripts.measure_classifier import tie_facts


def test_facts_agree_with_a_second_measurement() -> None:
    facts = json.loads((SHIPPED / "facts.json").read_text())
    n = 300
    for name, stated in facts["classifiers"].items():
        classifier = load_shipped(SHIPPED / name)
        assert stated["digest"] == classifier.digest, f"{name} was retrained: run `{facts['command']}`"
        for tied, values in stated["ties"].items():
            again = tie_facts(classifier, tied, n, planted.SPLIT_SEEDS["validation"])
            for key, value in again.items():
                assert abs(value - values[key]) < 0.12, (name, tied, key, value, values[key])
    assert set(facts["planted"]) == set(planted.SHORTCUTS)


def test_the_shortcut_shows_and_the_clean_classifier_has_none() -> None:
    classifiers = json.loads((SHIPPED / "facts.json").read_text())["classifiers"]
    for name, values in classifiers["planted_shortcut"]["ties"].items():
        assert 0.1 <= values["recall_without_cue"] <= 0.6 and values["cue_alone"] >= 0.8, (name, values)
    for name, values in classifiers["planted_clean"]["ties"].items():
        assert abs(values["recall_with_cue"] - values["recall_without_cue"]) <= 0.03, (name, values)
