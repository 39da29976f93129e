"""The factorial set: balanced, the same for every classifier, and generated once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from classifier_lens.runner.types import UserError
from classifier_lens.tasks.interventions.design import (
    PromptScene,
    check_template,
    factorial_scenes,
    format_scene,
    generate_scenes,
    shares_generated,
)
from tests.tasks.tiny import Embeddings, Maker, cache_in, colour

TEMPLATE = "a photograph of a {hue} {class} {place}"
FACTORS: dict[str, list[str | None]] = {"hue": ["red", "orange"], "place": [None, "on sand", "in snow"]}


def test_a_prompt_names_what_the_scene_has() -> None:
    assert format_scene(TEMPLATE, "crab", {"hue": "red", "place": "on sand"}) == "a photograph of a red crab on sand"
    assert format_scene(TEMPLATE, "crab", {"hue": "orange", "place": None}) == "a photograph of an orange crab"
    assert format_scene(TEMPLATE, "urn", {"hue": None, "place": None}) == "a photograph of an urn"


@pytest.mark.parametrize(
    ("template", "factors", "line"),
    [
        ("a {class}", FACTORS, "expected the fields {class}, {hue}, {place}"),
        ("a {hue} {class} {place} {size}", FACTORS, "expected the fields"),
        ("a {hue} {class {place}", FACTORS, "task.prompt="),
        ("a {class} {hue}", {"hue": ["red"]}, "task.factors.hue: expected two or more different phrases"),
        ("a {class} {hue}", {"hue": ["red", "red"]}, "task.factors.hue: expected two or more different phrases"),
    ],
)
def test_a_wrong_template_is_one_line(template: str, factors: Any, line: str) -> None:
    with pytest.raises(UserError, match=line):
        check_template(template, factors)


def test_each_phrase_occurs_equally_often_and_factors_are_independent() -> None:
    scenes = factorial_scenes("crab", 3, FACTORS, 600, seed=0)
    for factor, phrases in FACTORS.items():
        counts = Counter(scene.phrases[factor] for scene in scenes)
        assert counts == {phrase: 600 // len(phrases) for phrase in phrases}
    pairs = Counter((scene.phrases["hue"], scene.phrases["place"]) for scene in scenes)
    assert len(pairs) == 6 and all(70 <= count <= 130 for count in pairs.values())


def test_scenes_depend_on_seed_and_class_alone() -> None:
    scenes = factorial_scenes("crab", 3, FACTORS, 12, seed=0)
    assert scenes == factorial_scenes("crab", 3, FACTORS, 12, seed=0)
    assert scenes != factorial_scenes("crab", 3, FACTORS, 12, seed=1)
    seeds = [scene.seed for position in (0, 1) for scene in factorial_scenes("crab", position, FACTORS, 12, 0)]
    assert len(set(seeds)) == 24, "each image has noise of its own"


def test_a_matched_scene_differs_in_one_phrase() -> None:
    scene = PromptScene("crab", {"hue": "red", "place": None}, 7)
    assert scene.with_phrase("place", "on sand") == PromptScene("crab", {"hue": "red", "place": "on sand"}, 7)


class Recording(Maker):
    """Gray images, the brighter the longer the prompt; counts what is generated."""

    def sample(self, prompts: Any, seeds: Any) -> Tensor:
        self.asked += zip(prompts, seeds, strict=True)
        return torch.stack([colour(*[len(prompt) / 100] * 3) for prompt in prompts])


def test_images_are_generated_once(tmp_path: Path) -> None:
    generator, cache = Recording(), cache_in(tmp_path)
    scenes = factorial_scenes("crab", 0, FACTORS, 40, seed=0)
    images = generate_scenes(scenes, TEMPLATE, generator, cache)
    assert len(generator.asked) == 40 and images.shape == (40, 3, 8, 8)
    expected = torch.tensor([len(format_scene(TEMPLATE, s.label, s.phrases)) / 100 for s in scenes])
    assert torch.allclose(images[:, 0, 0, 0], expected, atol=0.5 / 255)
    assert torch.equal((images * 255).round(), images * 255), "as 8-bit files hold them"
    assert torch.equal(generate_scenes(scenes, TEMPLATE, generator, cache), images) and len(generator.asked) == 40
    generate_scenes(scenes[:1], TEMPLATE, generator, cache)
    assert len(generator.asked) == 41, "another set is another entry"


def test_a_phrase_that_the_generator_ignores_is_noticed() -> None:
    """The images are red or orange as the prompt says, and never show a place."""
    scenes = factorial_scenes("crab", 0, FACTORS, 12, seed=0)
    images = torch.stack([colour(1, 0, 0) if scene.phrases["hue"] == "red" else colour(0, 1, 0) for scene in scenes])
    texts = {
        "a photograph of a red crab": [1.0, 0.0, 0.0], "a photograph of an orange crab": [0.0, 1.0, 0.0],
        "a photograph of a crab": [1.0, 1.0, 0.0], "a photograph of a crab on sand": [0.0, 0.0, 1.0],
        "a photograph of a crab in snow": [0.1, 0.1, 1.0],
    }  # fmt: skip
    shares = shares_generated(scenes, images, TEMPLATE, FACTORS, Embeddings(texts))
    assert shares == {
        ("hue", "red"): 1.0, ("hue", "orange"): 1.0, ("place", None): 1.0, ("place", "on sand"): 0.0,
        ("place", "in snow"): 0.0,
    }  # fmt: skip
