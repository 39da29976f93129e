"""Rows of prompts, with answers that are written here."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from classifier_lens.data import planted
from classifier_lens.scripts.evaluate import class_explanations
from classifier_lens.scripts.evaluate.class_explanations import (
    SHORTCUT,
    best_restarts,
    cue_tokens,
    hard_prompt_cue_token,
    prompt_activation_score,
    prompt_cue,
    prompt_object,
    prompt_score_gain,
)
from classifier_lens.scripts.evaluate.metric import Result, Setting
from classifier_lens.scripts.evaluate.oracles import SHORTCUT_CLASSES
from tests.conftest import ROOT

SETTING = Setting(0, "cpu", "outputs")
TOKENIZER = CLIPTokenizer.from_pretrained(ROOT / "models" / "pretrained" / "planted" / "tokenizer")


def portrait(label: str, loss: float, score: float, shades: Sequence[float] = (1.0,), prompt: str = "") -> Result:
    """An answer whose pictures have one shade each; the class's name had half of its pictures called so."""
    gallery = torch.tensor(shades)[:, None, None, None].expand(-1, 3, 4, 4)
    record = {
        "loss": {"total": loss}, "activation_score": score, "prompt": prompt,
        "baseline_prompts": {"class_name": {"activation_score": 0.5}, "caption": {"activation_score": 1.0}},
    }  # fmt: skip
    return Result(SimpleNamespace(target=planted.CLASSES.index(label)), record, gallery[0], None, gallery)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """Two restarts of a tied class, of which the second has the lower loss, and one of a free one."""
    found = [
        portrait("fiddler crab", 2.0, 1.0, (0.0,)),
        portrait("fiddler crab", 1.0, 0.75, (1.0, 1.0, 0.6, 0.0)),
        portrait("viaduct", 3.0, 1.0, (1.0, 0.0)),
    ]

    def bright(_: Setting, factor: str, images: Tensor, wanted: Sequence[str]) -> list[bool]:
        expected = {"background": {"sand"}, "class": {"viaduct"}}
        assert set(wanted) == expected[factor]
        return [bool(image.mean() > 0.5) for image in images]

    def whole(_: Setting, images: Tensor, names: Sequence[str]) -> list[bool]:
        return [bool(image.mean() > 0.9) for image in images]

    monkeypatch.setattr(class_explanations, "compute_results", lambda *_: found)
    monkeypatch.setattr(class_explanations, "oracles_confirm", bright)
    monkeypatch.setattr(class_explanations, "contains_object", whole)
    return found


def test_of_a_class_the_restart_with_the_lowest_loss_counts(given: list[Result]) -> None:
    assert best_restarts(given) == given[1:]


def test_scores_count_classes_and_gains_are_paired(given: list[Result]) -> None:
    found = prompt_activation_score(SETTING, 2, SHORTCUT)
    assert found.value == 0.5 and found.note == "mean 87.5 %, lowest 75.0 % (fiddler crab)"
    assert prompt_activation_score(SETTING, 4, SHORTCUT).value == 0.25, "classes without an answer count as misses"
    assert prompt_score_gain(SETTING, 2, SHORTCUT, "class_name").value == pytest.approx(0.375)
    caption = prompt_score_gain(SETTING, 2, SHORTCUT, "caption")
    assert caption.value == pytest.approx(-0.125) and "1 of 2 classes below it" in caption.note


def test_cues_and_objects_are_looked_for_in_all_pictures(given: list[Result]) -> None:
    cue = prompt_cue(SETTING, 2)
    assert cue.value == 0.75 and cue.note == "without the object: 50.0 %"
    found = prompt_object(SETTING, 2, SHORTCUT, ["viaduct"])
    assert found.value == 0.5


def test_a_cues_own_tokens_are_those_no_other_word_has() -> None:
    def spelled(cue: str) -> list[str]:
        return sorted(TOKENIZER.convert_ids_to_tokens(sorted(cue_tokens(TOKENIZER, cue))))

    assert spelled("sand") == ["san"], "red has the other one"
    assert spelled("water") == ["ter</w>"], "a wall begins as water does"
    assert "jet</w>" in spelled("water jet") and spelled("dry grass") == ["dr", "gra", "ss</w>"]


def test_a_prompt_names_a_cue_by_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = {"fiddler crab": "a picture of sand", "great white shark": "a picture of wall", "fireboat": "a jet flag"}
    found = [portrait(label, 1.0, 1.0, prompt=prompt) for label, prompt in prompts.items()]
    found.append(portrait(SHORTCUT_CLASSES[0], 2.0, 0.0, prompt="a picture of snow"))
    networks: Any = SimpleNamespace(tokenizer=TOKENIZER)
    monkeypatch.setattr(class_explanations, "compute_results", lambda *_: found)
    monkeypatch.setattr(
        class_explanations, "domain_parts", lambda *_: SimpleNamespace(diffusion=SimpleNamespace(networks=networks))
    )
    given = hard_prompt_cue_token(SETTING, 4, SHORTCUT)
    assert given.value == pytest.approx(2 / 3), "wall is not water; the worse restart does not count"
    assert "fiddler crab: sand (100 %)" in given.note and "by chance" in given.note
