"""Renamed keys of the training scripts."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from classifier_lens.runner.paths import CONFIG_FOLDER
from classifier_lens.runner.types import UserError
from classifier_lens.scripts.train import classifier, clip, loop
from classifier_lens.scripts.train.settings import (
    RENAMED_KEYS,
    ClassifierSettings,
    ClipSettings,
    GeneratorSettings,
    LcmSettings,
    SegmenterSettings,
)

TRAIN = CONFIG_FOLDER / "train"
FILES = {
    ClassifierSettings: ["classifier"], ClipSettings: ["clip"], SegmenterSettings: ["segmenter_planted"],
    GeneratorSettings: ["generator_planted", "generator_cifar10"], LcmSettings: ["lcm_planted", "lcm_cifar10"],
}  # fmt: skip


@pytest.mark.parametrize("settings_type", RENAMED_KEYS, ids=lambda settings_type: settings_type.__name__)
def test_every_new_name_is_a_key_and_no_old_name_is(settings_type: type) -> None:
    keys: set[str] = set()
    for file in FILES[settings_type]:
        stack: list[tuple[str, Any]] = [("", OmegaConf.to_container(OmegaConf.load(TRAIN / f"{file}.yaml")))]
        while stack:
            prefix, value = stack.pop()
            for key, inner in value.items() if isinstance(value, dict) else ():
                keys.add(f"{prefix}{key}")
                stack.append((f"{prefix}{key}.", inner))
    renamed = RENAMED_KEYS[settings_type]
    assert set(renamed.values()) <= keys and not set(renamed) & keys


def test_an_old_key_ends_in_one_line_with_the_new_one() -> None:
    for load, word, line in (
        (classifier.load_settings, "strength=0.9", "strength: this key was renamed to shortcut_strength"),
        (classifier.load_settings, "ties=planted_hues", "ties: this key was renamed to shortcuts"),
        (classifier.load_settings, "faces={label: age}", "faces.label: this key was renamed to faces.label_column"),
        (clip.load_settings, "say.hue=1", "say: this key was renamed to caption_probabilities"),
        (lambda words: loop.load_settings("lcm", words), "form=lora", "form: this key was renamed to student_type"),
    ):
        with pytest.raises(UserError) as refused:
            load([word])
        assert str(refused.value) == line
