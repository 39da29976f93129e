"""The task of concept effects: its problems, records and summary, on a generator and a classifier of colors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from classifier_lens.models.tensor_cache import TensorCache
from classifier_lens.runner.lazy_part import LazyPart
from classifier_lens.runner.protocols import TaskInputs
from classifier_lens.runner.types import UserError
from classifier_lens.tasks.concept_effect import ConceptEffect, importance
from tests.cli import Cli
from tests.tasks.interventions.test_phrase_effects import BIAS, CLEAN, FACTORS, TEMPLATE, TIED, Painter
from tests.tasks.tiny import NAMES, Colours, Pictures, classifier_of, noise, preserved_reference, same_scene, world


@dataclass(frozen=True)
class Tint:
    """Adds to one channel, unless it is a control."""

    phrase: str
    channel: int
    is_control: bool = False
    is_damage: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        tinted = images.clone()
        tinted[:, self.channel] += 0 if self.is_control else 0.5
        return tinted


OVERLAYS = {"reddish": Tint("a red tint", 0), "nothing": Tint("no tint", 1, is_control=True)}


def refuse() -> Any:
    raise AssertionError("no CLIP is needed")


def make_task(path: Path, **changes: Any) -> ConceptEffect:
    phrases = {factor: [phrase for phrase in values if phrase] for factor, values in FACTORS.items()}
    settings: dict[str, Any] = {
        "classes": None, "similar_class": "confusion", "prompt": TEMPLATE, "factors": phrases,
        "optional_factors": ["thing"], "images_per_phrase": 8, "effect_threshold": 0.3, "pairs": 3,
        "min_share_generated": 0.5, "clip": None, "overlays": OVERLAYS, "num_images": 4, "log_odds_threshold": 1.0,
        "classes_shown": 2, "cache": TensorCache(str(path / "cache")),
    }  # fmt: skip
    return ConceptEffect(**{**settings, **changes})


def make_inputs(weight: Any = TIED, limit: int | None = None) -> TaskInputs:
    return world(noise(4), classifier_of(Colours(weight, BIAS)), limit, Painter())


def test_a_problem_per_class_and_per_overlay(tmp_path: Path) -> None:
    problems, total = make_task(tmp_path).problems(make_inputs())
    assert total == len(NAMES) + len(OVERLAYS) == len(problems)
    assert [problem.record["kind"] for problem in problems] == ["phrases"] * 3 + ["overlay"] * 2
    first = problems[0].record
    assert first["target"] == NAMES[0] and first["found"] == ["on sand"], "the shortcut that was put in"
    assert not any(problem.record["found"] for problem in problems[1:3])
    assert len(first["effects"]) == 4 and dict(first["effects"][0])["concept"] == "on sand"
    assert [row["concept"] for row in first["pairs"]] == ["on sand"] and first["untested"] == []
    shown = sorted([problem.record for problem in reversed(problems)], key=importance)
    assert shown[0] is first and [record["kind"] for record in shown] == ["phrases"] * 3 + ["overlay"] * 2
    first_two, _ = make_task(tmp_path).problems(make_inputs(limit=2))
    assert [p.name for p in first_two] == [p.name for p in problems[:2]], "a limit takes the first ones"
    assert problems[0].edit.target == f"a {NAMES[0]} on sand" and problems[0].edit.source == f"a {NAMES[0]}"


def test_a_clean_classifier_has_no_shortcut(tmp_path: Path) -> None:
    problems, _ = make_task(tmp_path, overlays={}).problems(make_inputs(CLEAN))
    assert len(problems) == len(NAMES) and not any(problem.record["found"] for problem in problems)


def test_the_images_of_a_result_are_pairs(tmp_path: Path) -> None:
    problems, _ = make_task(tmp_path).problems(make_inputs())
    pairs = [(p.load(), p.load_edited()) for p in problems if p.load is not None and p.load_edited is not None]
    assert len(pairs) == 5 and all(without.shape == with_concept.shape for without, with_concept in pairs)
    red, control = problems[3:]
    assert red.record["overlay"] == "a red tint" and red.record["found"] == [NAMES[0]]
    assert control.record["is_control"] and torch.equal(*pairs[4]) and not torch.equal(*pairs[3])


def test_without_a_generator_overlays_are_tested_and_clip_is_not_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = make_inputs()
    inputs.generator.can_generate = False
    problems, total = make_task(tmp_path, clip=LazyPart(refuse)).problems(inputs)
    assert total == 2 and all(problem.record["kind"] == "overlay" for problem in problems)
    assert "generator=none: phrases are not tested" in capsys.readouterr().out
    nothing = TaskInputs(Pictures([], []), inputs.classifier, inputs.generator, 0, None)
    with pytest.raises(UserError, match="generator=none data=none: concepts need a generator"):
        make_task(tmp_path).problems(nothing)


class Sandless:
    """A CLIP model that never sees sand."""

    fingerprint, logit_scale = "sandless", 1.0

    def embed_images(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 1)

    def embed_texts(self, texts: Any) -> Tensor:
        return torch.tensor([[0.0 if "sand" in text else 1.0] for text in texts])


def test_a_phrase_that_is_not_shown_is_no_shortcut(tmp_path: Path) -> None:
    task = make_task(tmp_path, classes=[NAMES[0]], overlays={}, clip=Sandless())
    (problem,), _ = task.problems(make_inputs())
    assert problem.record["found"] == [] and "on sand" in problem.record["untested"]
    tested = [bool(dict(row)["tested"]) for row in problem.record["effects"]]
    assert tested == sorted(tested, reverse=True) and tested[0], "an untested phrase is not the strongest one"


def test_the_summary_lists_shortcuts_by_their_effect(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    summary = task.summarize([dict(problem.record) for problem in task.problems(make_inputs())[0]])
    assert (summary["classes"], summary["overlays"], summary["results"]) == (3, 2, 5)
    found = [(row["class"], row["concept"]) for row in summary["shortcuts"]]
    assert found == [(NAMES[0], "on sand"), (NAMES[0], "a red tint")]


def test_the_objective_is_the_change_of_the_pixels(tmp_path: Path) -> None:
    reference = preserved_reference(torch.zeros(2, 3, 8, 8))
    ((weight, term),) = make_task(tmp_path).objective([], reference, make_inputs().classifier).values()
    assert weight == 1.0 and term(same_scene(reference)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"optional_factors": ["size"]}, "task.optional_factors=size"),
        ({"prompt": "a {class}"}, "expected the fields {class}, {place}, {thing}"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        make_task(tmp_path, **changes)


def test_a_run_from_end_to_end(capfd: pytest.CaptureFixture[str], cli: Cli) -> None:
    """With the small consistency model: two classes, two overlays, and the page."""
    outcome = cli.here(
        capfd, "task=concept_effect", "sampler=lcm", f"generator.unet={cli.student}", "task.clip=null",
        "task.classes=[rock crab, viaduct]", "task.factors.hue=[red, blue]", "task.factors.place=[on sand, in snow]",
        "task.images_per_phrase=2", "task.pairs=2", "task.num_images=3", "overlay=[border, mirror]",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    records = [json.loads(line) for line in (cli.folder / "results.jsonl").read_text().splitlines()]
    assert {record["name"] for record in records} == {"rock-crab", "viaduct", "overlay-border", "overlay-mirror"}
    for record in records:
        assert record["loss"]["total"] > 0, "the result is the edited image"
        assert set(record["images"]) == {"original", "start", "result", "difference"}
    assert "Without the concept" in (cli.folder / "index.html").read_text()
