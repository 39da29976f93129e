"""An old name of a key ends in one line that gives the new one."""

from __future__ import annotations

import re

import pytest

from classifier_lens.runner.configuration.compose import compose_config
from classifier_lens.runner.configuration.renamed_keys import KEYS, OPTIONS, new_name
from classifier_lens.runner.types import UserError


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["task.keep=all"], "task.keep: this key was renamed to task.preserve"),
        (["claim.wait=false"], "claim.wait: this key was renamed to lease.wait_for_others"),
        (["generator.softening.latents.dilate=3"], "generator.softening.latents.dilate: this key was renamed to "
         "generator.mask_postprocess.latents.dilate_kernel"),
        (["controls=soft_prompt"], "controls: this key was renamed to parametrization"),
        (["task=neuron_vis", "task.enough=2"], "task.enough: this key was renamed to task.saturation_std "
         "(task=neuron_cf or npca_cf) or task.saturation_ratio (task=neuron_vis)"),
        (["task.baseline=guidance"],
         "task.baseline=guidance: this option was renamed to task.baseline=classifier_guidance"),
        (["classifier=planted_tied"],
         "classifier=planted_tied: this option was renamed to classifier=planted_background_shortcut"),
        (["data=drawn"], "data=drawn: this option was renamed to data=none"),
        (["data.cues=chance"], "data.cues=chance: this option was renamed to data.cues=independent"),
        (["task=disagreement", "task/validate=none"], "task.validate: this key was renamed to task.retrieval"),
        (["+task.keep=all"], "task.keep: this key was renamed to task.preserve"),
    ],
    ids=str,
)  # fmt: skip
def test_an_old_name_is_told_with_the_new_one(words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        compose_config(words)


def test_no_new_name_is_an_old_one() -> None:
    """Otherwise a key that is in use would be refused."""
    assert not set(OPTIONS) & set(OPTIONS.values())
    assert all(new_name(new) in (None, new) for new in KEYS.values() if " " not in new)
